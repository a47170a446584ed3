defmodule Mix.Tasks.Beamr.Demo do
  @shortdoc "Shows what Beamr does, on a small C program"

  @moduledoc """
  Shows what Beamr does, on a small C program, in less than two seconds.

      mix beamr.demo

  The program is `test/guests/demo.c`. What is printed is the Elixir code that has just run,
  with the time that it took on the left and what it answered on the right. Then guests loop
  for ever, and it is measured how fast Elixir processes answer beside them.
  """

  use Mix.Task

  # The bytes are part of this module, so that they are there too where Beamr is a dependency.
  @wasm Path.expand("../../../test/guests/demo.wasm", __DIR__)
  @external_resource @wasm
  @bytes File.read!(@wasm)

  @requirements ["app.config"]

  @impl true
  def run(_args) do
    {:ok, _started} = Application.ensure_all_started(:beamr)
    # Loaded beforehand, so that no time below includes it.
    :beamr |> Application.spec(:modules) |> Enum.each(&Code.ensure_loaded!/1)

    {module, imports, wasm} = instantiate()
    strings(wasm)
    import_calls(wasm)
    trap(wasm)
    endless_loops(module, imports)
  end

  # Runs the code, and prints it with its time and its value.
  defmacrop show(code) do
    quote do
      started = System.monotonic_time()
      value = unquote(code)
      print(unquote(Macro.to_string(code)), time_since(started), answer(value))
      value
    end
  end

  # The same for code whose time and value say nothing.
  defmacrop define(code) do
    quote do
      print(unquote(Macro.to_string(code)), "", "")
      unquote(code)
    end
  end

  defp instantiate do
    bytes = @bytes
    heading("A C program, #{byte_size(bytes)} bytes of WebAssembly, becomes a guest")

    show(module = Beamr.compile!(bytes))
    define(facts = %{"elixir" => System.version(), "otp" => System.otp_release()})

    define(
      lookup = fn wasm, key ->
        fact = Map.fetch!(facts, Beamr.IO.read_string!(wasm, key))
        Beamr.IO.write_string!(wasm, fact)
      end
    )

    define(imports = %{"env" => %{"lookup" => lookup}})
    show(wasm = Beamr.instantiate!(module, imports: imports))
    show(Beamr.IO.size!(wasm))
    {module, imports, wasm}
  end

  defp strings(wasm) do
    heading("Strings are written to its memory and read from it")

    show(text = Beamr.IO.write_string!(wasm, "the quick brown fox"))
    show(Beamr.call!(wasm, "count_words", [text]))
    show([title] = Beamr.call!(wasm, "title_case", [text]))
    show(Beamr.IO.read_string!(wasm, title))
    show(Enum.each([text, title], &Beamr.IO.free!(wasm, &1)))
  end

  defp import_calls(wasm) do
    heading("Its import is the Elixir function lookup: the guest calls it for each {key}")

    show(form = Beamr.IO.write_string!(wasm, "made by OTP {otp}"))
    show([filled] = Beamr.call!(wasm, "fill_in", [form]))
    show(Beamr.IO.read_string!(wasm, filled))
    show(Enum.each([form, filled], &Beamr.IO.free!(wasm, &1)))
  end

  defp trap(wasm) do
    heading("A fault in the C code is a value, and the guest lives on")

    show(blank = Beamr.IO.write_string!(wasm, " "))
    show({:error, trap} = Beamr.call(wasm, "word_length", [blank]))
    show(trap.reason)
    show(Enum.map(trap.backtrace, & &1.name))
    show(Beamr.call!(wasm, "count_words", [blank]))
    show(Beamr.IO.free!(wasm, blank))
  end

  defp endless_loops(module, imports) do
    schedulers = System.schedulers_online()
    n = 2 * schedulers
    heading("#{n} guests loop for ever on #{schedulers} schedulers, and Elixir goes on answering")

    row("to spawn a process and hear from it", ["median", "99 %", "worst"])
    row("beside nothing else", latencies(100))
    beside_processes(n)
    beside_guests(for _ <- 1..n, do: Beamr.instantiate!(module, imports: imports))
  end

  defp beside_processes(n) do
    loops = for _ <- 1..n, do: spawn_monitor(&loop/0)
    row("beside #{n} looping processes", latencies(300))
    Enum.each(loops, &kill/1)
  end

  defp beside_guests(guests) do
    counters = Enum.map(guests, &Beamr.IO.malloc!(&1, 8))
    Enum.zip_with(guests, counters, &Beamr.IO.write!(&1, &2, <<0::64>>))

    calls = Enum.zip_with(guests, counters, &spawn_monitor(fn -> spin(&1, &2) end))
    row("beside #{length(guests)} looping guests", latencies(300))
    least = guests |> Enum.zip_with(counters, &count/2) |> Enum.min()

    started = System.monotonic_time()
    Enum.each(calls, &kill/1)
    killed = time_since(started)
    Enum.zip_with(guests, counters, &Beamr.IO.free!/2)

    IO.puts("""

                Each guest counted past #{div(least, 1_000_000)} million; the count was read while it ran.
                Then the calls were killed, in #{killed}, and each guest was called again.
    """)
  end

  defp spin(wasm, counter), do: Beamr.call!(wasm, "spin", [counter], timeout: :infinity)

  defp count(wasm, counter) do
    <<count::64-little>> = Beamr.IO.read!(wasm, counter, 8)
    count
  end

  defp loop, do: loop()

  defp kill({pid, monitor}) do
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^monitor, :process, ^pid, reason} -> :killed = reason
    end
  end

  # The median, the 99th percentile and the worst time to spawn a process and hear from it.
  defp latencies(milliseconds) do
    duration = System.convert_time_unit(milliseconds, :millisecond, :native)
    sorted = (System.monotonic_time() + duration) |> round_trips([]) |> Enum.sort()
    count = length(sorted)

    for index <- [div(count, 2), div(count * 99, 100), count - 1] do
      sorted |> Enum.at(index) |> time()
    end
  end

  defp round_trips(ending, times) do
    parent = self()
    started = System.monotonic_time()
    child = spawn(fn -> send(parent, {:reply, self()}) end)

    receive do
      {:reply, ^child} ->
        now = System.monotonic_time()
        times = [now - started | times]
        if now < ending, do: round_trips(ending, times), else: times
    end
  end

  defp heading(text), do: IO.puts("\n#{text}\n")

  defp print(code, time, answer) do
    [first | rest] = String.split(code, "\n")
    line = "#{String.pad_leading(time, 10)}  #{String.pad_trailing(first, 58)}  #{answer}"
    IO.puts(String.trim_trailing(line))
    Enum.each(rest, &IO.puts("            #{&1}"))
  end

  defp row(label, cells) do
    cells = Enum.map_join(cells, &String.pad_leading(&1, 11))
    IO.puts("            #{String.pad_trailing(label, 37)}#{cells}")
  end

  defp answer({:error, %module{}}), do: "#=> {:error, %#{inspect(module)}{}}"
  defp answer(value), do: "#=> #{inspect(value)}"

  defp time_since(started), do: time(System.monotonic_time() - started)

  defp time(native) do
    microseconds = System.convert_time_unit(native, :native, :nanosecond) / 1_000

    cond do
      microseconds < 10 -> "#{Float.round(microseconds, 1)} µs"
      microseconds < 1_000 -> "#{round(microseconds)} µs"
      true -> "#{Float.round(microseconds / 1_000, 1)} ms"
    end
  end
end
