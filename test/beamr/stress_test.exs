defmodule Beamr.StressTest do
  # Everything at once, for a minute: calls, nested calls, timeouts, interrupts, traps, kills,
  # closes and memory access from hundreds of processes on a few instances, by a seeded plan.
  #
  #     mix test --only stress
  #     BEAMR_STRESS_SECONDS=600 BEAMR_STRESS_SEED=7 mix test --only stress
  use ExUnit.Case, async: false

  @moduletag :stress
  @moduletag timeout: :infinity

  @workers 300
  @instances 12
  @slot 64

  @guest """
  (module
    (import "env" "add" (func $add (param i32 i32) (result i32)))
    (import "env" "down" (func $down (param i32) (result i32)))
    (import "env" "wait" (func $wait))
    (memory (export "memory") 1)
    (func (export "add") (param i32 i32) (result i32)
      (i32.add (local.get 0) (local.get 1)))
    (func (export "add_by_import") (param i32 i32) (result i32)
      (call $add (local.get 0) (local.get 1)))
    (func (export "nest") (param i32) (result i32)
      (if (result i32) (local.get 0)
        (then (i32.add (i32.const 1) (call $down (i32.sub (local.get 0) (i32.const 1)))))
        (else (i32.const 0))))
    (func (export "spin") (param i32) (result i32)
      (loop
        (local.set 0 (i32.sub (local.get 0) (i32.const 1)))
        (br_if 0 (local.get 0)))
      (i32.const 7))
    (func (export "loop") (loop (br 0)))
    (func (export "wait") (call $wait))
    (func (export "trap") unreachable))
  """

  @imports %{
    "env" => %{
      "add" => &__MODULE__.add/3,
      "down" => &__MODULE__.down/2,
      "wait" => &__MODULE__.wait/1
    }
  }

  def add(_wasm, a, b), do: a + b
  def down(wasm, n), do: wasm |> Beamr.call!("nest", [n], timeout: :infinity) |> hd()
  def wait(_wasm), do: Process.sleep(:infinity)

  test "no answer is wrong, no call hangs, memory comes back" do
    seconds = String.to_integer(System.get_env("BEAMR_STRESS_SECONDS", "60"))

    seed =
      String.to_integer(System.get_env("BEAMR_STRESS_SEED", "#{ExUnit.configuration()[:seed]}"))

    module = Beamr.compile!(@guest)
    table = :ets.new(:instances, [:public, read_concurrency: true])

    # The first round brings the VM and its allocators to their working size.
    round(module, table, min(seconds, 5), seed)
    before = resident()
    done = round(module, table, seconds, seed + 1)
    grown = resident() - before

    IO.puts(
      "\n#{done} operations in #{seconds} s, seed #{seed}; resident memory #{div(grown, 1024)} KiB more"
    )

    assert grown < 48 * 1024 * 1024
  end

  defp round(module, table, seconds, seed) do
    for n <- 1..@instances, do: :ets.insert(table, {n, instantiate(module)})
    deadline = System.monotonic_time(:millisecond) + seconds * 1_000

    counts =
      1..@workers
      |> Enum.map(fn worker ->
        Task.async(fn ->
          :rand.seed(:exsss, {seed, worker, 0})
          count = work(module, table, worker, deadline, 0)
          assert {:messages, []} = Process.info(self(), :messages)
          count
        end)
      end)
      |> Task.await_many((seconds + 60) * 1_000)

    for {_n, wasm} <- :ets.tab2list(table), do: Beamr.close(wasm)
    :ets.delete_all_objects(table)
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    Enum.sum(counts)
  end

  defp instantiate(module), do: Beamr.instantiate!(module, imports: @imports)

  defp work(module, table, worker, deadline, count) do
    if System.monotonic_time(:millisecond) < deadline do
      n = :rand.uniform(@instances)
      [{^n, wasm}] = :ets.lookup(table, n)

      operate(:rand.uniform(100), wasm, worker, fn ->
        :ets.insert(table, {n, instantiate(module)})
      end)

      work(module, table, worker, deadline, count + 1)
    else
      count
    end
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 30 do
    [a, b] = [:rand.uniform(1_000), :rand.uniform(1_000)]
    function = Enum.random(["add", "add_by_import"])
    expect(Beamr.call(wasm, function, [a, b], timeout: 2_000), [a + b])
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 35 do
    depth = :rand.uniform(20)

    # The inner levels pass on what ends them from outside, through the import.
    case Beamr.call(wasm, "nest", [depth], timeout: 2_000) do
      {:error, %Beamr.ImportError{reason: %Beamr.CallError{} = error}} ->
        expect({:error, error}, [])

      result ->
        expect(result, [depth])
    end
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 40 do
    expect(Beamr.call(wasm, "spin", [:rand.uniform(2_000_000)], timeout: 2_000), [7])
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 43 do
    scheduler = Enum.random([:auto, :normal, :dirty])
    result = Beamr.call(wasm, "loop", [], timeout: :rand.uniform(5), scheduler: scheduler)
    assert {:error, %Beamr.CallError{}} = result
    expect(result, [])
  end

  defp operate(dice, wasm, worker, _replace) when dice <= 85 do
    offset = worker * @slot
    data = :crypto.strong_rand_bytes(:rand.uniform(@slot))

    with :ok <- Beamr.IO.write(wasm, offset, data) do
      case Beamr.IO.read(wasm, offset, byte_size(data)) do
        {:ok, ^data} -> :ok
        {:error, %Beamr.MemoryError{reason: :closed}} -> :ok
      end
    else
      {:error, %Beamr.MemoryError{reason: :closed}} -> :ok
    end
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 89 do
    case Beamr.call(wasm, "trap", [], timeout: 2_000) do
      {:error, %Beamr.Trap{reason: :unreachable}} -> :ok
      {:error, _error} = result -> expect(result, [])
    end
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 94 do
    function = Enum.random(["loop", "wait", "spin", "add_by_import"])
    args = Map.get(%{"spin" => [100_000], "add_by_import" => [1, 2]}, function, [])
    {pid, monitor} = spawn_monitor(fn -> Beamr.call(wasm, function, args, timeout: 2_000) end)
    if :rand.uniform(2) == 1, do: Process.sleep(:rand.uniform(3))
    Process.exit(pid, :kill)
    assert_receive {:DOWN, ^monitor, :process, ^pid, _reason}, 30_000
  end

  defp operate(dice, wasm, _worker, _replace) when dice <= 98, do: Beamr.interrupt(wasm)

  defp operate(_dice, wasm, _worker, replace) do
    replace.()
    Beamr.close(wasm)
  end

  # Either the right answer, or a reason why the call was ended from outside.
  defp expect(result, results) do
    case result do
      {:ok, ^results} ->
        :ok

      {:error, %Beamr.CallError{reason: reason}}
      when reason in [:timeout, :interrupted, :closed] ->
        :ok
    end
  end

  defp resident do
    [_size, pages | _] = "/proc/self/statm" |> File.read!() |> String.split()
    String.to_integer(pages) * 4096
  end
end
