# The VM that is attacked. Its standard output is for the one that started it: a beat each second,
# where it has got to, and what it found.
#
#     elixir -pa EBIN child.exs ROOT KIND SEED FIRST LAST WORKERS SMITH

[root, kind, seed, first, last, workers, smith] = System.argv()

defmodule Hostile do
  @moduledoc false

  @max_resident 3_000_000_000

  def root, do: :persistent_term.get(__MODULE__)

  def beat do
    Process.flag(:priority, :high)
    IO.puts("beat")
    Process.sleep(1_000)
    beat()
  end

  @doc "Beamr works, every scheduler runs, and memory is what it was."
  def check_health do
    health = Task.async(&healthy?/0)

    unless Task.yield(health, 10_000) == {:ok, true},
      do: fail("sick: a fresh guest does not work")

    # One process on each scheduler, of either kind.
    for n <- 1..System.schedulers_online() do
      scheduled =
        :erlang.spawn_opt(fn -> receive(do: ({:ping, from} -> send(from, :pong))) end,
          scheduler: n
        )

      send(scheduled, {:ping, self()})

      receive do
        :pong -> :ok
      after
        10_000 -> fail("stuck: scheduler #{n}")
      end
    end

    if resident() > @max_resident,
      do: fail("grown: #{div(resident(), 1_000_000)} MB are resident")
  end

  defp healthy? do
    wasm =
      Beamr.instantiate!(
        ~S|(module (memory (export "memory") 1)
      (func (export "f") (param i32) (result i32) (i32.add (local.get 0) (i32.load (i32.const 8)))))|
      )

    :ok = Beamr.IO.write(wasm, 8, <<41::little-32>>)
    {:ok, [42]} = Beamr.call(wasm, "f", [1], scheduler: :dirty)
    :ok = Beamr.close(wasm)
    true
  end

  def resident do
    [_, kilobytes] = Regex.run(~r/VmRSS:\s+(\d+)/, File.read!("/proc/self/status"))
    String.to_integer(kilobytes) * 1_024
  end

  def fail(text) do
    IO.puts(text)
    System.halt(4)
  end
end

:persistent_term.put(Hostile, root)
Logger.configure(level: :none)

~w(pool terms api watch calls guests)
|> Enum.map(&Path.join(root, "test/hostile/#{&1}.exs"))
|> Kernel.ParallelCompiler.require()

alias Hostile.{Calls, Guests, Watch}

{:ok, _} = Application.ensure_all_started(:beamr)
{:ok, _} = Registry.start_link(keys: :unique, name: Hostile.Names)
File.mkdir_p!("files")
:ets.new(Hostile.Counts, [:named_table, :public, write_concurrency: true])
spawn(&Hostile.beat/0)
Watch.start()
[seed, first, last] = Enum.map([seed, first, last], &String.to_integer/1)
workers = if workers != "", do: String.to_integer(workers)

run =
  case kind do
    "calls" ->
      IO.puts("functions #{Calls.load()}")
      &Calls.round(seed, &1, workers)

    "guests" ->
      &Guests.round(seed, &1, smith, workers)
  end

# Told to stop, it ends behind the round that it is in.
stopped = :atomics.new(1, [])

spawn(fn ->
  case IO.gets("") do
    "stop\n" -> :atomics.put(stopped, 1, 1)
    # Who started this is gone.
    _eof -> System.halt(5)
  end
end)

try do
  for round <- first..last, :atomics.get(stopped, 1) == 0 do
    IO.puts("round #{round}")
    run.(round)
    Hostile.check_health()
    File.rm_rf!("files")
    File.mkdir_p!("files")
  end
catch
  kind, reason -> Hostile.fail("broken: " <> Exception.format(kind, reason, __STACKTRACE__))
end

counts = for {what, count} <- Enum.sort(:ets.tab2list(Hostile.Counts)), do: "#{what}: #{count}"
if counts != [], do: IO.puts("counted #{Enum.join(counts, ", ")}")

IO.puts(
  "done, #{div(Hostile.resident(), 1_000_000)} MB resident, " <>
    "#{div(:erlang.memory(:total), 1_000_000)} MB of the BEAM's, #{length(Process.list())} processes"
)

System.halt(0)
