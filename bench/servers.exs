# What does a server cost, next to an instance and to a bare GenServer? How many are started in a
# second, and how much memory does each take?
#
#     mix run bench/servers.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Servers do
  import Bench.Measure

  @guest """
  (module $guest
    (import "env" "add" (func $import (param i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "add") (param i32 i32) (result i32)
      (i32.add (local.get 0) (local.get 1)))
    (func (export "add_by_import") (param i32 i32) (result i32)
      (call $import (local.get 0) (local.get 1))))
  """

  defmodule Bare do
    use GenServer

    @impl true
    def init(state), do: {:ok, state}

    @impl true
    def handle_call({:add, a, b}, _from, state), do: {:reply, {:ok, [a + b]}, state}
  end

  defmodule Stateful do
    use Beamr.Server

    @impl true
    def init(count), do: {:ok, count}

    @impl true
    def handle_import({"env", "add"}, [a, b], _wasm, count), do: {:reply, a + b, count + 1}
  end

  def run do
    module = Beamr.compile!(@guest)
    opts = [module: module, imports: %{"env" => %{"add" => fn _wasm, a, b -> a + b end}}]
    wasm = Beamr.instantiate!(module, Keyword.take(opts, [:imports]))
    {:ok, server} = Beamr.start_link([name: Bench.Server] ++ opts)
    {:ok, stateful} = Stateful.start_link(module: module, arg: 0)
    {:ok, bare} = GenServer.start_link(Bare, nil)

    calls(wasm, server, stateful, bare)
    memory(wasm, server)
    starts(opts)
    title("Many servers")
    for count <- unless_quick([1_000, 10_000], [10]), do: footprint(opts, count)
  end

  defp calls(wasm, server, stateful, bare) do
    header("Calls")
    bare_call = fn -> GenServer.call(bare, {:add, 1, 2}) end

    both = fn ->
      GenServer.call(bare, {:add, 1, 2})
      Beamr.call(wasm, "add", [1, 2])
    end

    instance = fn -> Beamr.call(wasm, "add", [1, 2]) end

    compare(
      "server call",
      fn -> Beamr.call(server, "add", [1, 2]) end,
      "bare + direct call",
      both
    )

    compare(
      "server call",
      fn -> Beamr.call(server, "add", [1, 2]) end,
      "bare GenServer.call",
      bare_call
    )

    compare(
      "server call",
      fn -> Beamr.call(server, "add", [1, 2]) end,
      "call on the instance",
      instance
    )

    compare(
      "server call by name",
      fn -> Beamr.call(Bench.Server, "add", [1, 2]) end,
      "bare + direct call",
      both
    )

    compare(
      "server call with import",
      fn -> Beamr.call(server, "add_by_import", [1, 2]) end,
      "bare + direct, import",
      fn ->
        GenServer.call(bare, {:add, 1, 2})
        Beamr.call(wasm, "add_by_import", [1, 2])
      end
    )

    compare(
      "import with state",
      fn -> Beamr.call(stateful, "add_by_import", [1, 2]) end,
      "server call with import",
      fn -> Beamr.call(server, "add_by_import", [1, 2]) end
    )
  end

  defp memory(wasm, server) do
    header("Memory")

    for {label, guest} <- [{"pid", server}, {"name", Bench.Server}] do
      compare(
        "read 8 B by #{label}",
        fn -> Beamr.IO.read(guest, 0, 8) end,
        "by instance",
        fn -> Beamr.IO.read(wasm, 0, 8) end
      )

      compare(
        "write 8 B by #{label}",
        fn -> Beamr.IO.write(guest, 0, "12345678") end,
        "by instance",
        fn -> Beamr.IO.write(wasm, 0, "12345678") end
      )
    end
  end

  defp starts(opts) do
    header("Starting and stopping")

    compare("start and stop", fn -> start_and_stop(opts) end, "instantiate and close", fn ->
      opts[:module] |> Beamr.instantiate!(Keyword.take(opts, [:imports])) |> Beamr.close()
    end)

    compare("start and stop", fn -> start_and_stop(opts) end, "a bare GenServer", fn ->
      {:ok, pid} = GenServer.start_link(Bare, nil)
      GenServer.stop(pid)
    end)
  end

  defp start_and_stop(opts) do
    {:ok, pid} = Beamr.start_link(opts)
    GenServer.stop(pid)
  end

  # Starts so many under one supervisor, calls each once, and looks at the memory of both worlds.
  defp footprint(opts, count) do
    {:ok, supervisor} = DynamicSupervisor.start_link(strategy: :one_for_one)
    spec = Beamr.Server.child_spec(opts)
    beam = beam_bytes()
    resident = resident_bytes()
    started = System.monotonic_time()

    pids =
      for _ <- 1..count do
        {:ok, pid} = DynamicSupervisor.start_child(supervisor, spec)
        pid
      end

    seconds = seconds_since(started)
    for pid <- pids, do: {:ok, [3]} = Beamr.call(pid, "add", [1, 2])

    beam = (beam_bytes() - beam) / count
    resident = (resident_bytes() - resident) / count
    stopping = System.monotonic_time()
    :ok = DynamicSupervisor.stop(supervisor)

    fact([
      "#{count} servers: started #{round(count / seconds)} per second, ",
      "stopped #{round(count / seconds_since(stopping))} per second; each takes ",
      "#{kib(beam)} of the BEAM's memory, #{kib(resident)} resident"
    ])
  end

  defp seconds_since(start) do
    (System.monotonic_time() - start) / System.convert_time_unit(1, :second, :native)
  end

  defp beam_bytes do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)
    :erlang.memory(:total)
  end
end

Bench.Servers.run()
