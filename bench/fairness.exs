# What do looping guests cost their neighbours, next to looping Elixir processes?
#
#     mix run bench/fairness.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Fairness do
  import Bench.Measure, only: [fact: 1, title: 1, unless_quick: 2]

  @guest """
  (module
    (func (export "loop") (loop (br 0)))
    (func (export "spin") (param i32)
      (loop
        (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (br_if 0 (local.get 0)))))
  """

  @milliseconds if Bench.Measure.quick?(), do: 10, else: 1_000
  @pings if Bench.Measure.quick?(), do: 20, else: 10_000

  def run do
    module = Beamr.compile!(@guest)
    schedulers = System.schedulers_online()

    title(
      "Neighbours, on #{schedulers} schedulers and " <>
        "#{:erlang.system_info(:dirty_cpu_schedulers)} dirty CPU schedulers"
    )

    neighbours(module, schedulers)
    title("Slices and timeouts")
    slicing(module)
    overshoot(module, 0)
    overshoot(module, 4 * schedulers)
  end

  # Ping is spawn-and-reply; "keeps" is the share of its idle-machine throughput that a busy
  # Elixir process of that priority has left.
  defp neighbours(module, schedulers) do
    alone = throughputs()
    report("none", %{latencies: ping(), throughput: alone}, alone)

    for factor <- [1, 4] do
      count = factor * schedulers
      processes = beside(count, fn -> fn -> spin() end end)
      report("#{count} Elixir processes", processes, alone)

      for scheduler <- [:auto, :normal, :dirty] do
        guests = beside(count, fn -> looper(module, scheduler) end)
        report("#{count} guests, #{inspect(scheduler)}", guests, alone)
        high = ratio(guests.throughput.high, processes.throughput.high)
        fact("  (of high priority #{high} of what it keeps beside the Elixir processes)")
      end
    end
  end

  # What is measured while so many loops run.
  defp beside(count, loop) do
    pids = for _ <- 1..count, do: spawn(loop.())
    # They are at work once each has used up its first slices.
    Process.sleep(50)
    measured = %{latencies: ping(), throughput: throughputs()}
    Enum.each(pids, &Process.exit(&1, :kill))
    measured
  end

  defp looper(module, scheduler) do
    wasm = Beamr.instantiate!(module)
    fn -> Beamr.call(wasm, "loop", [], timeout: :infinity, scheduler: scheduler) end
  end

  defp spin, do: spin()

  defp report(label, %{latencies: latencies, throughput: throughput}, alone) do
    [p50, p99] = for percent <- [50, 99], do: percentile(latencies, percent)

    fact([
      "beside #{label}: ping p50 #{p50} µs, p99 #{p99} µs; of its throughput a process keeps ",
      "#{ratio(throughput.normal, alone.normal)}, of high priority ",
      ratio(throughput.high, alone.high)
    ])
  end

  defp ratio(a, b), do: :erlang.float_to_binary(a / b, decimals: 2)

  defp ping do
    deadline = now() + 5_000_000
    me = self()

    for _ <- 1..@pings, now() < deadline do
      start = System.monotonic_time(:nanosecond)
      spawn(fn -> send(me, :pong) end)

      receive do
        :pong -> (System.monotonic_time(:nanosecond) - start) / 1_000
      end
    end
  end

  defp throughputs, do: %{normal: throughput(:normal), high: throughput(:high)}

  # Units of work that a process of this priority does in the time.
  defp throughput(priority) do
    Task.async(fn ->
      Process.flag(:priority, priority)
      work(now() + @milliseconds * 1_000, 0)
    end)
    |> Task.await(:infinity)
  end

  defp work(deadline, done) do
    count(10_000)
    if now() < deadline, do: work(deadline, done + 1), else: done
  end

  defp count(0), do: :ok
  defp count(n), do: count(n - 1)

  # The same iterations in one call of many slices, and in calls that each end well within
  # their first slice; a trivial call's time is taken off the latter.
  defp slicing(module) do
    wasm = Beamr.instantiate!(module)
    pieces = unless_quick(1_000, 20)
    piece = 60_000
    schedulers = [:auto, :normal, :dirty]

    sliced =
      for scheduler <- schedulers do
        options = [timeout: :infinity, scheduler: scheduler]
        {scheduler, fn -> Beamr.call!(wasm, "spin", [pieces * piece], options) end}
      end

    whole = fn -> for _ <- 1..pieces, do: Beamr.call!(wasm, "spin", [piece]) end
    trivial = fn -> for _ <- 1..pieces, do: Beamr.call!(wasm, "spin", [1]) end

    # Of runs that follow each other at once, since the machine may be slower a second later.
    costs =
      for _ <- 1..unless_quick(21, 1), {scheduler, sliced} <- sliced do
        {scheduler, time(sliced) / (time(whole) - time(trivial)) - 1}
      end
      |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))

    for scheduler <- schedulers do
      costs = Enum.sort(costs[scheduler])
      median = Enum.at(costs, div(length(costs), 2))

      fact(
        "slicing costs, #{inspect(scheduler)}: #{Float.round(median * 100, 1)} % of the throughput"
      )
    end
  end

  defp overshoot(module, loops) do
    pids =
      for _ <- 1..loops//1 do
        wasm = Beamr.instantiate!(module)
        spawn(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)
      end

    wasm = Beamr.instantiate!(module)
    runs = unless_quick(500, 5)

    for timeout <- [1, 10] do
      over =
        for _ <- 1..runs do
          time(fn -> Beamr.call(wasm, "loop", [], timeout: timeout) end) - timeout * 1_000
        end

      late("a timeout of #{timeout} ms beside #{loops} loops", over)
    end

    late("an interrupt beside #{loops} loops", for(_ <- 1..runs, do: interrupt(wasm)))
    late("  (Erlang's own timer of 10 ms there)", for(_ <- 1..runs, do: timer(10)))
    Enum.each(pids, &Process.exit(&1, :kill))
  end

  # From the interrupt to the return of the call.
  defp interrupt(wasm) do
    caller =
      Task.async(fn ->
        Beamr.call(wasm, "loop", [], timeout: :infinity)
        now()
      end)

    Process.sleep(5 + :rand.uniform(5))
    start = now()
    Beamr.interrupt(wasm)
    Task.await(caller) - start
  end

  # What an Elixir process waits too long where nothing keeps it but the machine.
  defp timer(timeout) do
    time(fn ->
      receive do
      after
        timeout -> :ok
      end
    end) - timeout * 1_000
  end

  defp late(what, over) do
    fact("#{what} is late by: p50 #{percentile(over, 50)} µs, p99 #{percentile(over, 99)} µs")
  end

  defp percentile(values, percent) do
    sorted = Enum.sort(values)
    value = Enum.at(sorted, min(length(sorted) - 1, div(length(sorted) * percent, 100)))
    Float.round(value / 1, 1)
  end

  defp time(function), do: function |> :timer.tc() |> elem(0)
  defp now, do: System.monotonic_time(:microsecond)
end

Bench.Fairness.run()
