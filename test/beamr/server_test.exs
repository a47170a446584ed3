defmodule Beamr.ServerTest do
  use Beamr.Case, async: true

  import ExUnit.CaptureLog

  alias Beamr.{CallError, CompileError, ImportError, LimitError, LinkError, Server, Trap}

  doctest Beamr.Server

  @moduletag capture_log: true

  # `set` notes its argument at 0 of the memory, `get` answers it; `trap` traps after it has
  # written 99 there; `loop` never ends.
  @guest """
  (module $guest
    (memory (export "memory") 1 4)
    (global (export "g") (mut i32) (i32.const 7))
    (table (export "t") 2 8 externref)
    (table (export "functions") funcref (elem $get))
    (func (export "add") (param i32 i32) (result i32)
      (i32.add (local.get 0) (local.get 1)))
    (func (export "set") (param i32) (i32.store (i32.const 0) (local.get 0)))
    (func $get (export "get") (result i32) (i32.load (i32.const 0)))
    (func (export "trap") (i32.store (i32.const 0) (i32.const 99)) unreachable)
    (func (export "loop")
      (i32.store (i32.const 0) (i32.const 1))
      (loop (br 0)))
    (func (export "init") (i32.store (i32.const 0) (i32.add (call $get) (i32.const 1))))
    (func $malloc (export "malloc") (param i32) (result i32) (i32.const 1024))
    (func (export "free") (param i32)))
  """

  # `f` answers what the import makes of its argument; `twice` calls it twice.
  @importer """
  (module $importer
    (import "env" "i" (func $i (param i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "f") (param i32) (result i32) (call $i (local.get 0)))
    (func (export "twice") (param i32) (result i32) (call $i (call $i (local.get 0))))
    (func (export "seven") (result i32) (i32.const 7))
    (func (export "trap") unreachable))
  """

  defp start(opts) do
    opts = Keyword.merge([module: @guest], opts)
    start_supervised!({Server, opts}, id: make_ref(), restart: :temporary)
  end

  defp start_importer(function, opts \\ []) do
    opts = Keyword.merge([module: @importer, imports: %{"env" => %{"i" => function}}], opts)
    start_supervised!({Server, opts}, id: make_ref(), restart: :temporary)
  end

  defp tell(pid, message, answer) do
    send(pid, message)
    answer
  end

  defp unique_name, do: :"guest_#{System.unique_integer([:positive])}"

  defp addresses do
    {:ok, _} = start_supervised({Registry, keys: :unique, name: registry = unique_name()})
    atom = unique_name()
    global = {:global, {__MODULE__, make_ref()}}
    via = {:via, Registry, {registry, "tenant"}}
    at_node = unique_name()
    for name <- [atom, global, via, at_node], do: start(name: name, fuel: 1_000_000)
    [start(fuel: 1_000_000), atom, global, via, {at_node, node()}]
  end

  # Starts `loop` of the server in a task, and waits until it is running.
  defp start_loop(server, opts \\ [timeout: :infinity]) do
    {:ok, pid} = Task.start(fn -> Beamr.call(server, "loop", [], opts) end)
    eventually(fn -> Beamr.IO.read!(server, 0, 1) == <<1>> end)
    pid
  end

  # The answer of start_link to a caller that traps no exits, and whether the caller lived.
  defp start_from_a_plain_process(opts, name \\ nil) do
    test = self()

    {pid, monitor} =
      spawn_monitor(fn ->
        if name, do: Process.register(self(), name)
        answer = Server.start_link(opts)
        # The link is gone when the server is, and with it the exit signal has come.
        eventually(fn -> Process.info(self(), :links) == {:links, []} end)
        send(test, {:answer, self(), answer})
      end)

    assert_receive {:DOWN, ^monitor, _, _, reason}, 10_000
    outcome = if reason == :normal, do: :lived, else: {:died, reason}

    receive do
      {:answer, ^pid, answer} -> {answer, outcome}
    after
      0 -> {:no_answer, outcome}
    end
  end

  describe "module:" do
    test "may be a compiled module" do
      assert Beamr.call(start(module: Beamr.compile!(@guest)), "add", [1, 2]) == {:ok, [3]}
    end

    test "may be text" do
      assert Beamr.call(start(module: "  \n" <> @guest), "add", [1, 2]) == {:ok, [3]}
    end

    test "may be text that begins with a comment" do
      assert Beamr.call(start(module: ";; hello\n" <> @guest), "add", [1, 2]) == {:ok, [3]}
    end

    test "may be bytes" do
      # (module (func (export "one") (result i32) (i32.const 1)))
      bytes =
        <<0, "asm", 1, 0, 0, 0, 1, 5, 1, 0x60, 0, 1, 0x7F, 3, 2, 1, 0, 7, 7, 1, 3, "one", 0, 0,
          10, 6, 1, 4, 0, 0x41, 1, 0x0B>>

      assert Beamr.call(start(module: bytes), "one", []) == {:ok, [1]}
    end

    @tag :tmp_dir
    test "may be a path", %{tmp_dir: dir} do
      path = Path.join(dir, "guest.wat")
      File.write!(path, @guest)
      assert Beamr.call(start(module: path), "add", [1, 2]) == {:ok, [3]}
    end

    test "is required" do
      assert_raise ArgumentError, ~r/:module is required/, fn -> Server.start_link([]) end
    end
  end

  describe "options" do
    test "imports:" do
      assert Beamr.call(start_importer(fn _wasm, n -> n * 2 end), "f", [21]) == {:ok, [42]}
    end

    test "limits" do
      assert {{:error, %LimitError{reason: :max_memory}}, :lived} =
               start_from_a_plain_process(module: @guest, max_memory: 10)

      assert {{:error, %LimitError{reason: :max_table_elements}}, :lived} =
               start_from_a_plain_process(module: @guest, max_table_elements: 1)
    end

    test "fuel: meters source" do
      assert {:error, %Trap{reason: :out_of_fuel}} = Beamr.call(start(fuel: 1_000), "loop", [])
    end

    test "max_depth:" do
      name = unique_name()
      again = fn _wasm, n -> name |> Beamr.call!("f", [n + 1]) |> hd() end
      start_importer(again, name: name, max_depth: 3)
      assert {:error, %ImportError{}} = Beamr.call(name, "f", [0])
    end

    test "timeout: bounds the start function" do
      source = "(module (func $start (loop (br 0))) (start $start))"

      assert {{:error, %CallError{reason: :timeout}}, :lived} =
               start_from_a_plain_process(module: source, timeout: 10)
    end

    test "timeout: bounds the export of init:" do
      assert {{:error, %CallError{reason: :timeout, function: "loop"}}, :lived} =
               start_from_a_plain_process(module: @guest, init: "loop", timeout: 10)
    end

    test "scheduler:" do
      assert Beamr.call(start(scheduler: :dirty, init: "init"), "get", []) == {:ok, [1]}
    end

    test "hibernate_after:" do
      pid = start(hibernate_after: 0)

      # The second is that of OTP 28 and later.
      eventually(fn ->
        {:current_function, {module, function, _arity}} = Process.info(pid, :current_function)
        {module, function} in [erlang: :hibernate, gen_server: :loop_hibernate]
      end)

      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
    end

    test "that are unknown raise" do
      for option <- [modul: @guest, restart: :transient, nmae: :x] do
        assert_raise ArgumentError, fn -> Server.start_link([option, {:module, @guest}]) end
      end
    end

    test "of the wrong kind raise in the caller" do
      Process.flag(:trap_exit, true)

      for option <- [
            on_trap: :crash,
            init: 7,
            init: fn -> :ok end,
            timeout: :soon,
            scheduler: :fast,
            max_memory: -1,
            max_depth: 0,
            fuel: 1.5,
            imports: []
          ] do
        assert_raise ArgumentError, fn -> Server.start_link([{:module, @guest}, option]) end
      end
    end

    test "fuel: with a module that is not metered raises in the caller" do
      module = Beamr.compile!(@guest)
      Process.flag(:trap_exit, true)

      assert_raise ArgumentError, ~r/fuel/, fn -> Server.start_link(module: module, fuel: 5) end
    end
  end

  describe "name:" do
    test "an atom, known to Process.whereis" do
      name = unique_name()
      pid = start(name: name)
      assert Process.whereis(name) == pid
      assert Beamr.call(name, "add", [1, 2]) == {:ok, [3]}
    end

    test "a second server of the same name is refused" do
      name = unique_name()
      pid = start(name: name)
      assert Server.start_link(name: name, module: @guest) == {:error, {:already_started, pid}}
    end

    test "{:global, name}" do
      name = {:global, make_ref()}
      pid = start(name: name)
      assert GenServer.whereis(name) == pid
      assert Beamr.call(name, "add", [1, 2]) == {:ok, [3]}
    end

    test "{:via, Registry, _}" do
      start_supervised!({Registry, keys: :unique, name: registry = unique_name()})
      name = {:via, Registry, {registry, "tenant"}}
      pid = start(name: name)
      assert [{^pid, _}] = Registry.lookup(registry, "tenant")
      assert Beamr.call(name, "add", [1, 2]) == {:ok, [3]}
    end
  end

  describe "init:" do
    test "an export, called once" do
      assert Beamr.call(start(init: "init"), "get", []) == {:ok, [1]}
    end

    test "a function, given the instance, in the server" do
      test = self()
      pid = start(init: fn wasm -> send(test, {self(), Beamr.call!(wasm, "set", [5])}) end)
      assert_received {^pid, []}
      assert Beamr.call(pid, "get", []) == {:ok, [5]}
    end

    test "a function may use the server's own pid" do
      assert Beamr.call(start(init: fn _ -> Beamr.call!(self(), "set", [5]) end), "get", []) ==
               {:ok, [5]}
    end

    test "a function may reach the memory by the server's own pid" do
      test = self()
      start(init: fn _wasm -> send(test, {:size, Beamr.IO.size(self())}) end)
      assert_received {:size, {:ok, 65_536}}
    end

    test "a trap of the export keeps the server from starting" do
      assert {{:error, %Trap{reason: :unreachable}}, :lived} =
               start_from_a_plain_process(module: @guest, init: "trap")
    end

    test "an export that is not there keeps it from starting" do
      assert {{:error, %CallError{reason: :unknown_function, function: "nope"}}, :lived} =
               start_from_a_plain_process(module: @guest, init: "nope")
    end

    test "an error tuple of the function keeps it from starting" do
      assert {{:error, :not_today}, :lived} =
               start_from_a_plain_process(module: @guest, init: fn _ -> {:error, :not_today} end)
    end

    test "an exception of the function keeps it from starting" do
      assert {{:error, %RuntimeError{message: "no"}}, :lived} =
               start_from_a_plain_process(module: @guest, init: fn _ -> raise "no" end)
    end
  end

  describe "a module that cannot be started" do
    test "is an answer when it does not compile" do
      assert {{:error, %CompileError{reason: :invalid_wat}}, :lived} =
               start_from_a_plain_process(module: "(module (nope))")
    end

    test "is an answer when the file is not there" do
      assert {{:error, %CompileError{reason: {:file, :enoent}}}, :lived} =
               start_from_a_plain_process(module: "no/such.wasm")
    end

    test "is an answer when it does not link" do
      assert {{:error, %LinkError{imports: [%{problem: :missing, name: "i"}]}}, :lived} =
               start_from_a_plain_process(module: @importer)
    end

    test "is an answer when its start function traps" do
      source = "(module (func $start unreachable) (start $start))"

      assert {{:error, %Trap{reason: :unreachable}}, :lived} =
               start_from_a_plain_process(module: source)
    end

    test "is an answer also to a caller that has a name" do
      assert {{:error, %LinkError{}}, :lived} =
               start_from_a_plain_process([module: @importer], unique_name())
    end

    test "leaves its name free" do
      name = unique_name()
      assert {{:error, _}, :lived} = start_from_a_plain_process(module: @importer, name: name)
      eventually(fn -> Process.whereis(name) == nil end)
      assert start(name: name)
    end

    test "is an answer of the supervisor, which lives" do
      supervisor = start_supervised!({DynamicSupervisor, strategy: :one_for_one})

      for source <- ["(module (nope))", @importer, "no/such.wasm"] do
        assert {:error, %{__exception__: true}} =
                 DynamicSupervisor.start_child(supervisor, {Server, module: source})
      end

      assert DynamicSupervisor.count_children(supervisor).active == 0
    end
  end

  describe "child_spec" do
    test "has defaults" do
      assert %{id: Server, restart: :permanent, shutdown: 5_000, start: {Server, :start_link, _}} =
               Server.child_spec(module: @guest)
    end

    test "takes id:, restart: and shutdown:" do
      assert %{id: :a, restart: :temporary, shutdown: 10} =
               Server.child_spec(module: @guest, id: :a, restart: :temporary, shutdown: 10)
    end

    test "holds the compiled module, so that restarts compile nothing" do
      %{start: {Server, :start_link, [opts]}} = Server.child_spec(module: @guest, on_trap: :keep)
      assert %Beamr.Module{} = opts[:module]
      assert opts[:on_trap] == :keep
    end

    test "keeps a compiled module as it is" do
      module = Beamr.compile!(@guest)
      %{start: {_, _, [opts]}} = Server.child_spec(module: module)
      assert opts[:module] == module
    end

    @tag :tmp_dir
    test "a restart does not read the file again", %{tmp_dir: dir} do
      path = Path.join(dir, "guest.wat")
      File.write!(path, @guest)
      name = unique_name()
      pid = start_supervised!({Server, module: path, name: name})
      File.rm!(path)
      kill_and_await_restart(name, pid)
      assert Beamr.call(name, "add", [1, 2]) == {:ok, [3]}
    end

    test "Beamr.start_link/1 is the short way" do
      assert {:ok, pid} = Beamr.start_link(module: @guest)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
      GenServer.stop(pid)
    end
  end

  defp kill_and_await_restart(name, pid) do
    Process.exit(pid, :kill)
    await_restart(name, pid)
  end

  defp await_restart(name, old) do
    eventually(fn ->
      pid = Process.whereis(name)
      pid != nil and pid != old and match?([_], Registry.lookup(Beamr.Registry, pid))
    end)

    Process.whereis(name)
  end

  # Everything that can be done with a guest, in an order in which each can be told from nothing.
  defp everything(g) do
    alias Beamr.Instance

    [
      call: Beamr.call(g, "set", [1]),
      call_with_options: Beamr.call(g, "add", [1, 2], timeout: 60_000, scheduler: :dirty),
      call!: Beamr.call!(g, "get", []),
      call_error: Beamr.call(g, "nope", []),
      interrupt: Beamr.interrupt(g),
      size: Beamr.IO.size(g),
      size!: Beamr.IO.size!(g, memory: "memory"),
      write: Beamr.IO.write(g, 8, ["he", "llo", 0]),
      write!: Beamr.IO.write!(g, 8, "j", memory: "memory"),
      write_error: Beamr.IO.write(g, 65_536, "j"),
      read: Beamr.IO.read(g, 8, 5),
      read!: Beamr.IO.read!(g, 8, 5, memory: "memory"),
      read_error: Beamr.IO.read(g, 65_536, 1),
      read_string: Beamr.IO.read_string(g, 8),
      read_string!: Beamr.IO.read_string!(g, 8, 2, memory: "memory"),
      write_string: Beamr.IO.write_string(g, "abc"),
      written: Beamr.IO.read(g, 1024, 4),
      write_string!: Beamr.IO.write_string!(g, ["d", "ef"]),
      malloc: Beamr.IO.malloc(g, 10),
      malloc!: Beamr.IO.malloc!(g, 10),
      free: Beamr.IO.free(g, 1024),
      free!: Beamr.IO.free!(g, 1024),
      set_global: Instance.set_global(g, "g", 5),
      get_global: Instance.get_global(g, "g"),
      set_global!: Instance.set_global!(g, "g", 6),
      get_global!: Instance.get_global!(g, "g"),
      global_error: Instance.get_global(g, "nope"),
      table_size: Instance.table_size(g, "t"),
      table_size!: Instance.table_size!(g, "t"),
      table_set: Instance.table_set(g, "t", 0, :term),
      table_set!: Instance.table_set!(g, "t", 1, {:a, "term"}),
      table_get: Instance.table_get(g, "t", 0),
      table_get!: Instance.table_get!(g, "t", 1),
      table_grow: Instance.table_grow(g, "t", 1, nil),
      table_grow!: Instance.table_grow!(g, "t", 1, :new),
      table_error: Instance.table_get(g, "t", 100),
      funcref: Beamr.call(g, Instance.table_get!(g, "functions", 0), []),
      fuel: match?({:ok, n} when n > 0 and n < 1_000_000, Instance.fuel(g)),
      fuel!: Instance.fuel!(g) < 1_000_000,
      add_fuel: match?({:ok, n} when n > 1_000_000, Instance.add_fuel(g, 1_000_000)),
      add_fuel!: Instance.add_fuel!(g, 1) > 1_000_000
    ]
  end

  # What each of them exits with when there is no such guest.
  defp functions do
    alias Beamr.Instance

    [
      call: &Beamr.call(&1, "get", []),
      call!: &Beamr.call!(&1, "get", []),
      endless_call: &Beamr.call(&1, "get", [], timeout: :infinity),
      interrupt: &Beamr.interrupt/1,
      size: &Beamr.IO.size/1,
      read: &Beamr.IO.read(&1, 0, 1),
      read!: &Beamr.IO.read!(&1, 0, 1),
      write: &Beamr.IO.write(&1, 0, "a"),
      read_string: &Beamr.IO.read_string(&1, 0),
      write_string: &Beamr.IO.write_string(&1, "a"),
      malloc: &Beamr.IO.malloc(&1, 1),
      free: &Beamr.IO.free(&1, 1),
      get_global: &Instance.get_global(&1, "g"),
      set_global: &Instance.set_global(&1, "g", 1),
      table_size: &Instance.table_size(&1, "t"),
      table_get: &Instance.table_get(&1, "t", 0),
      table_set: &Instance.table_set(&1, "t", 0, nil),
      table_grow: &Instance.table_grow(&1, "t", 0, nil),
      fuel: &Instance.fuel/1,
      add_fuel: &Instance.add_fuel(&1, 1)
    ]
  end

  describe "a pid or name in an instance's place" do
    test "does everything that an instance does" do
      expected = everything(Beamr.instantiate!(@guest, fuel: 1_000_000))

      for address <- addresses(),
          do: assert({address, everything(address)} == {address, expected})
    end

    test "of nobody exits with :noproc at once" do
      pid = spawn(fn -> :ok end)
      kill(pid)

      nobody = [
        pid,
        unique_name(),
        {:global, make_ref()},
        {:via, Registry, {Beamr.Registry, make_ref()}},
        {unique_name(), node()}
      ]

      for address <- nobody, {name, function} <- functions() do
        {time, exit} = :timer.tc(fn -> catch_exit(function.(address)) end)
        assert {^name, {:noproc, {_m, _f, _a}}} = {name, exit}
        assert time < 1_000_000
      end
    end

    test "of a server that has just died exits with :noproc" do
      pid = start([])
      kill(pid)

      for {name, function} <- functions(),
          do: assert({^name, {:noproc, _}} = {name, catch_exit(function.(pid))})
    end

    test "of a process that is no server exits with :noproc at once, and sends it nothing" do
      other = start_supervised!({Agent, fn -> :state end})

      for {name, function} <- functions(), name != :endless_call do
        {time, exit} = :timer.tc(fn -> catch_exit(function.(other)) end)
        assert {^name, {:noproc, _}} = {name, exit}
        assert time < 1_000_000
      end

      assert Agent.get(other, & &1) == :state
    end

    test "of the calling process, which is no server, exits with :noproc" do
      for {name, function} <- functions(),
          do: assert({^name, {:noproc, _}} = {name, catch_exit(function.(self()))})
    end

    test "is refused where it is no guest at all" do
      for address <- [nil, true, "guest", 7, {:a, "b"}, %{}] do
        assert_raise FunctionClauseError, fn -> Beamr.call(address, "get", []) end
        assert_raise FunctionClauseError, fn -> Beamr.IO.read(address, 0, 1) end
      end
    end
  end

  describe "while the server is in a call" do
    test "its memory is read and written" do
      pid = start([])
      start_loop(pid)
      assert Beamr.IO.read(pid, 0, 4) == {:ok, <<1, 0, 0, 0>>}
      assert Beamr.IO.write(pid, 16, "hello") == :ok
      assert Beamr.IO.read_string(pid, 16) == {:ok, "hello"}
      assert Beamr.IO.size(pid) == {:ok, 65_536}
      assert {:message_queue_len, 0} = Process.info(pid, :message_queue_len)
    end

    test "other calls wait for their turn, in order" do
      test = self()

      pid =
        start_importer(fn _wasm, n ->
          send(test, {:in, n, self()})

          receive do
            {:go_on, ^n} -> n
          end
        end)

      tasks =
        for n <- 1..3 do
          task = Task.async(fn -> Beamr.call(pid, "f", [n]) end)
          if n == 1, do: assert_receive({:in, 1, ^pid}, 10_000)

          eventually(fn ->
            Process.info(pid, :message_queue_len) == {:message_queue_len, n - 1}
          end)

          task
        end

      send(pid, {:go_on, 1})
      assert_receive {:in, 2, ^pid}, 10_000
      send(pid, {:go_on, 2})
      assert_receive {:in, 3, ^pid}, 10_000
      send(pid, {:go_on, 3})
      assert Task.await_many(tasks) == [{:ok, [1]}, {:ok, [2]}, {:ok, [3]}]
    end

    test "the call's timeout ends the guest, and the server goes on" do
      pid = start([])
      assert {:error, %CallError{reason: :timeout}} = Beamr.call(pid, "loop", [], timeout: 20)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
      assert Process.alive?(pid)
    end

    test "a call whose time passes in the queue times out, and its guest is never run" do
      pid = start([])
      client = start_loop(pid)
      assert {:error, %CallError{reason: :timeout}} = Beamr.call(pid, "set", [42], timeout: 20)
      kill(client)
      assert Beamr.call(pid, "get", []) == {:ok, [1]}
    end

    test "no answer of a call that timed out is left in the mailbox" do
      pid = start([])
      Beamr.call(pid, "loop", [], timeout: 5)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
      assert Process.info(self(), :messages) == {:messages, []}
    end

    test "a timeout of 0 is over at once" do
      assert {:error, %CallError{reason: :timeout}} =
               Beamr.call(start([]), "add", [1, 2], timeout: 0)
    end

    test "the longest timeout there is will do" do
      assert Beamr.call(start([]), "add", [1, 2], timeout: 0xFFFFFFFF) == {:ok, [3]}
    end

    test "the death of an endless call's client frees the server" do
      pid = start([])
      client = start_loop(pid)
      kill(client)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
    end

    test "the death of a client that still waits for its turn frees the server" do
      pid = start([])
      running = start_loop(pid)
      {:ok, waiting} = Task.start(fn -> Beamr.call(pid, "loop", [], timeout: :infinity) end)
      eventually(fn -> Process.info(pid, :message_queue_len) == {:message_queue_len, 1} end)
      kill(waiting)
      kill(running)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
    end

    test "Beamr.interrupt/1 ends the call" do
      pid = start([])
      task = Task.async(fn -> Beamr.call(pid, "loop", [], timeout: :infinity) end)
      eventually(fn -> Beamr.IO.read!(pid, 0, 1) == <<1>> end)
      Beamr.interrupt(pid)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(task)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
    end

    test "the death of the server is the client's exit" do
      pid = start([])
      test = self()

      spawn(fn ->
        send(test, catch_exit(Beamr.call(pid, "loop", [], timeout: :infinity)))
      end)

      eventually(fn -> Beamr.IO.read!(pid, 0, 1) == <<1>> end)
      kill(pid)
      assert_receive {:killed, _mfa}, 10_000
    end
  end

  describe "imports" do
    test "run in the server" do
      test = self()
      pid = start_importer(fn _wasm, n -> tell(test, {:ran_in, self()}, n) end)
      Beamr.call!(pid, "f", [1])
      assert_received {:ran_in, ^pid}
    end

    test "may call the guest by the server's pid" do
      pid = start_importer(fn _wasm, n -> hd(Beamr.call!(self(), "seven", [])) + n end)
      assert Beamr.call(pid, "f", [1]) == {:ok, [8]}
    end

    test "may call the guest by the server's name" do
      name = unique_name()
      start_importer(fn _wasm, n -> hd(Beamr.call!(name, "seven", [])) + n end, name: name)
      assert Beamr.call(name, "f", [1]) == {:ok, [8]}
    end

    test "may reach the guest's memory by the server's name" do
      name = unique_name()

      start_importer(
        fn _wasm, n ->
          Beamr.IO.write!(name, 0, <<n>>)
          :binary.first(Beamr.IO.read!(name, 0, 1)) + 1
        end,
        name: name
      )

      assert Beamr.call(name, "f", [1]) == {:ok, [2]}
    end

    test "that hang give the client its timeout; the server goes on when they end" do
      test = self()

      pid =
        start_importer(fn _wasm, n ->
          send(test, :hanging)
          receive do: (:go_on -> n)
        end)

      assert {:error, %CallError{reason: :timeout, function: "f"}} =
               Beamr.call(pid, "f", [1], timeout: 20)

      assert_receive :hanging, 10_000
      send(pid, :go_on)
      assert Beamr.call(pid, "seven", []) == {:ok, [7]}
    end

    test "that fail are the caller's error, and the server goes on" do
      pid = start_importer(fn _wasm, _n -> raise "no" end)

      assert {:error, %ImportError{reason: %RuntimeError{message: "no"}}} =
               Beamr.call(pid, "f", [1])

      assert_raise RuntimeError, "no", fn -> Beamr.call!(pid, "f", [1]) end
      assert Beamr.call(pid, "seven", []) == {:ok, [7]}
    end
  end

  describe "on_trap: :stop" do
    test "gives the caller the error and stops with the trap" do
      pid = start([])
      monitor = Process.monitor(pid)
      assert {:error, %Trap{reason: :unreachable} = trap} = Beamr.call(pid, "trap", [])
      assert_receive {:DOWN, ^monitor, _, _, {:trap, ^trap}}, 10_000
    end

    test "is the exit of clients that still wait" do
      pid = start([])
      client = start_loop(pid)
      test = self()
      Task.start(fn -> Beamr.call(pid, "trap", []) end)
      eventually(fn -> Process.info(pid, :message_queue_len) == {:message_queue_len, 1} end)
      Task.start(fn -> send(test, {:exit, catch_exit(Beamr.call(pid, "get", []))}) end)
      eventually(fn -> Process.info(pid, :message_queue_len) == {:message_queue_len, 2} end)
      kill(client)
      assert_receive {:exit, {{:trap, %Trap{reason: :unreachable}}, _mfa}}, 10_000
    end

    test "lets the supervisor start it afresh, init: included" do
      name = unique_name()
      pid = start_supervised!({Server, module: @guest, name: name, init: "init"})
      assert Beamr.call(name, "set", [50]) == {:ok, []}
      assert {:error, %Trap{}} = Beamr.call(name, "trap", [])
      await_restart(name, pid)
      assert Beamr.call(name, "get", []) == {:ok, [1]}
    end

    test "does not restart a :temporary server" do
      supervisor = start_supervised!({DynamicSupervisor, strategy: :one_for_one})
      spec = {Server, module: @guest, restart: :temporary}
      {:ok, pid} = DynamicSupervisor.start_child(supervisor, spec)
      monitor = Process.monitor(pid)
      Beamr.call(pid, "trap", [])
      assert_receive {:DOWN, ^monitor, _, _, _}, 10_000
      eventually(fn -> DynamicSupervisor.count_children(supervisor).specs == 0 end)
    end

    test "a timeout is no trap" do
      pid = start(on_trap: :stop)
      Beamr.call(pid, "loop", [], timeout: 5)
      assert Beamr.call(pid, "add", [1, 2]) == {:ok, [3]}
    end

    test "running out of fuel is a trap" do
      pid = start(fuel: 100)
      monitor = Process.monitor(pid)
      Beamr.call(pid, "loop", [])
      assert_receive {:DOWN, ^monitor, _, _, {:trap, %Trap{reason: :out_of_fuel}}}, 10_000
    end

    test "what the guest's malloc traps with stops the server as well" do
      source =
        ~S|(module (memory (export "memory") 1) (func (export "malloc") (param i32) (result i32) unreachable))|

      pid = start(module: source)
      monitor = Process.monitor(pid)
      assert {:error, %Trap{}} = Beamr.IO.malloc(pid, 1)
      assert_receive {:DOWN, ^monitor, _, _, {:trap, _}}, 10_000
    end
  end

  describe "on_trap: :reset" do
    test "gives a fresh instance under the same pid, and runs init: again" do
      pid = start(on_trap: :reset, init: "init")
      Beamr.call!(pid, "set", [50])
      assert {:error, %Trap{reason: :unreachable}} = Beamr.call(pid, "trap", [])
      assert Process.alive?(pid)
      assert Beamr.call(pid, "get", []) == {:ok, [1]}
    end

    test "memory by pid is the fresh instance's" do
      pid = start(on_trap: :reset)
      Beamr.call(pid, "trap", [])
      assert Beamr.IO.read(pid, 0, 4) == {:ok, <<0, 0, 0, 0>>}
      Beamr.IO.write!(pid, 0, <<9, 0, 0, 0>>)
      assert Beamr.call(pid, "get", []) == {:ok, [9]}
    end

    test "init: as a function may reach the fresh memory by the server's pid" do
      pid = start(on_trap: :reset, init: fn _wasm -> Beamr.IO.write(self(), 0, <<5>>) end)
      Beamr.call(pid, "trap", [])
      assert Beamr.call(pid, "get", []) == {:ok, [5]}
    end

    test "resets as often as it takes" do
      pid = start(on_trap: :reset, init: "init")

      for _ <- 1..20 do
        assert {:error, %Trap{}} = Beamr.call(pid, "trap", [])
        assert Beamr.call(pid, "get", []) == {:ok, [1]}
      end
    end

    test "restores fuel" do
      pid = start(on_trap: :reset, fuel: 500)
      Beamr.call(pid, "loop", [])
      assert Beamr.Instance.fuel(pid) == {:ok, 500}
    end

    test "memory and globals by pid are always some instance's, never a closed one's" do
      pid = start(on_trap: :reset)
      done = :atomics.new(1, [])

      readers =
        for _ <- 1..4 do
          Task.async(fn ->
            Stream.repeatedly(fn -> {Beamr.IO.size(pid), Beamr.Instance.get_global(pid, "g")} end)
            |> Stream.take_while(fn _ -> :atomics.get(done, 1) == 0 end)
            |> Enum.uniq()
          end)
        end

      for _ <- 1..2_000, do: Beamr.call(pid, "trap", [])
      :atomics.put(done, 1, 1)

      for answers <- Task.await_many(readers, 30_000),
          do: assert(answers == [{{:ok, 65_536}, {:ok, 7}}])
    end

    test "lets the calls that wait go on with the fresh instance" do
      test = self()

      hold = fn _wasm, n ->
        send(test, {:held, self()})
        receive do: (:go_on -> n)
      end

      source = """
      (module
        (import "env" "i" (func $i (param i32) (result i32)))
        (global $n (mut i32) (i32.const 0))
        (func (export "hold_and_trap")
          (global.set $n (i32.const 50))
          (drop (call $i (i32.const 0)))
          unreachable)
        (func (export "next") (result i32)
          (global.set $n (i32.add (global.get $n) (i32.const 1)))
          (global.get $n)))
      """

      pid = start_importer(hold, module: source, on_trap: :reset)
      holding = Task.async(fn -> Beamr.call(pid, "hold_and_trap", []) end)
      assert_receive {:held, ^pid}, 10_000
      waiting = Task.async(fn -> Beamr.call(pid, "next", []) end)
      eventually(fn -> Process.info(pid, :message_queue_len) == {:message_queue_len, 1} end)
      send(pid, :go_on)
      assert {:error, %Trap{}} = Task.await(holding)
      assert Task.await(waiting) == {:ok, [1]}
    end

    test "stops when init: fails" do
      counter = :counters.new(1, [])

      init = fn _wasm ->
        :counters.add(counter, 1, 1)
        if :counters.get(counter, 1) > 1, do: {:error, :not_twice}
      end

      pid = start(on_trap: :reset, init: init)
      monitor = Process.monitor(pid)
      assert {:error, %Trap{}} = Beamr.call(pid, "trap", [])
      assert_receive {:DOWN, ^monitor, _, _, :not_twice}, 10_000
    end

    test "does nothing on a timeout" do
      pid = start(on_trap: :reset)
      Beamr.call!(pid, "set", [50])
      Beamr.IO.write!(pid, 100, <<50>>)
      Beamr.call(pid, "loop", [], timeout: 5)
      assert Beamr.IO.read(pid, 100, 1) == {:ok, <<50>>}
    end
  end

  describe "on_trap: :keep" do
    test "goes on with the memory as the trap left it" do
      pid = start(on_trap: :keep, init: "init")
      assert {:error, %Trap{reason: :unreachable}} = Beamr.call(pid, "trap", [])
      assert Beamr.call(pid, "get", []) == {:ok, [99]}
    end
  end

  test "a server whose instance is closed stops with :closed" do
    test = self()
    pid = start(init: fn wasm -> tell(test, {:instance, wasm}, :ok) end)
    assert_received {:instance, wasm}
    monitor = Process.monitor(pid)
    Beamr.close(wasm)
    assert {:error, %CallError{reason: :closed}} = Beamr.call(pid, "get", [])
    assert_receive {:DOWN, ^monitor, _, _, :closed}, 10_000
  end

  test "a server that stops frees its instance" do
    test = self()
    pid = start(init: fn wasm -> tell(test, {:instance, wasm}, :ok) end)
    assert_received {:instance, wasm}
    GenServer.stop(pid)
    assert {:error, %{reason: :closed}} = Beamr.IO.size(wasm)
  end

  defmodule Counter do
    use Beamr.Server, restart: :transient

    @impl true
    def init(:stop), do: {:stop, :not_today}
    def init(:ignore), do: :ignore
    def init({:continue, _} = continue), do: {:ok, 0, continue}

    def init({:trap_exit, test}) do
      Process.flag(:trap_exit, true)
      {:ok, test}
    end

    def init(start), do: {:ok, start}

    @impl true
    def handle_import({"env", "i"}, [-1], _wasm, _state), do: raise("negative")
    def handle_import({"env", "i"}, [-2], _wasm, state), do: {:noreply, state}
    def handle_import({"env", "i"}, [-3], _wasm, state), do: {:reply, "three", state}

    def handle_import({"env", "i"}, [-4], _wasm, state) do
      {{:ok, [n]}, state} = Beamr.Server.run("f", [5], state)
      {:reply, n, state}
    end

    def handle_import({"env", "i"}, [-5], wasm, state) do
      {:ok, [7]} = Beamr.call(self(), "seven", [])
      {:reply, byte_size(Beamr.IO.read!(wasm, 0, 3)), state}
    end

    def handle_import({"env", "i"}, [step], _wasm, count), do: {:reply, count, count + step}

    @impl true
    def handle_call(:count, _from, count), do: {:reply, count, count}
    def handle_call(:hibernate, _from, count), do: {:reply, :ok, count, :hibernate}
    def handle_call(:stop, _from, count), do: {:stop, :normal, :stopped, count}
    def handle_call(:bad, _from, _count), do: :bad

    def handle_call(:later, from, count) do
      {:noreply, count, {:continue, {:reply, from}}}
    end

    def handle_call({:run, function, args}, _from, count) do
      {result, count} = Beamr.Server.run(function, args, count)
      {:reply, result, count}
    end

    def handle_call({:bare, function, args}, _from, count) do
      {:reply, Beamr.call(self(), function, args), count}
    end

    @impl true
    def handle_cast({:add, n}, count), do: {:noreply, count + n}
    def handle_cast(:stop, count), do: {:stop, :normal, count}

    @impl true
    def handle_info({:add, n}, count), do: {:noreply, count + n}

    def handle_info({:run, function, args, from}, count) do
      {result, count} = Beamr.Server.run(function, args, count, timeout: 1_000)
      send(from, {:result, result, count})
      {:noreply, count}
    end

    @impl true
    def handle_continue({:reply, from}, count) do
      GenServer.reply(from, {:continued, count})
      {:noreply, count + 1}
    end

    def handle_continue(n, count) when is_integer(n), do: {:noreply, count + n}

    @impl true
    def terminate(reason, test) when is_pid(test), do: send(test, {:terminate, reason, self()})
    def terminate(_reason, _count), do: :ok
  end

  defmodule Bare do
    use Beamr.Server

    @impl true
    def init(arg), do: {:ok, arg}

    @impl true
    def handle_import(_import, [n], _wasm, state), do: {:reply, n, state}
  end

  defmodule NoImports do
    use Beamr.Server

    @impl true
    def init(arg), do: {:ok, arg}

    @impl true
    def handle_call(:state, _from, state), do: {:reply, state, state}
  end

  defp start_counter(opts) do
    opts = Keyword.merge([module: @importer, arg: 0], opts)
    start_supervised!({Counter, opts}, id: make_ref(), restart: :temporary)
  end

  describe "use Beamr.Server" do
    test "a module without handle_import/4 leaves the imports to the options" do
      start = fn opts ->
        start_supervised!({NoImports, [module: @importer, arg: 7] ++ opts},
          id: make_ref(),
          restart: :temporary
        )
      end

      pid = start.(imports: %{"env" => %{"i" => fn _wasm, n -> n + 1 end}})
      assert Beamr.call(pid, "f", [5]) == {:ok, [6]}
      assert GenServer.call(pid, :state) == 7

      Process.flag(:trap_exit, true)
      assert {:error, %Beamr.LinkError{}} = NoImports.start_link(module: @importer, arg: 7)
    end

    test "imports see and change the state, across calls" do
      pid = start_counter(arg: 10)
      assert Beamr.call(pid, "f", [5]) == {:ok, [10]}
      assert Beamr.call(pid, "twice", [1]) == {:ok, [16]}
      assert GenServer.call(pid, :count) == 31
    end

    test "a nested call's imports see and change the state of run/4" do
      pid = start_counter(arg: 10)
      assert Beamr.call(pid, "f", [-4]) == {:ok, [10]}
      assert GenServer.call(pid, :count) == 15
    end

    test "an import may call the guest and read its memory" do
      assert Beamr.call(start_counter([]), "f", [-5]) == {:ok, [3]}
    end

    test "run/4 in handle_call" do
      pid = start_counter(arg: 3)
      assert GenServer.call(pid, {:run, "f", [4]}) == {:ok, [3]}
      assert GenServer.call(pid, :count) == 7
    end

    test "run/4 in handle_info" do
      pid = start_counter(arg: 3)
      send(pid, {:run, "f", [4], self()})
      assert_receive {:result, {:ok, [3]}, 7}, 10_000
    end

    test "run/4 keeps what imports changed before an error" do
      pid = start_counter(arg: 1)
      assert {:error, %ImportError{}} = GenServer.call(pid, {:run, "twice", [-3]})
      assert {:error, %CallError{reason: :arity}} = GenServer.call(pid, {:run, "f", []})
      assert GenServer.call(pid, :count) == 1
    end

    test "without run/4, a callback's call of the guest says what to do" do
      pid = start_counter([])

      assert {:error, %ImportError{} = error} = GenServer.call(pid, {:bare, "f", [1]})
      assert Exception.message(error) =~ "Beamr.Server.run/4"
    end

    test "a call without imports needs no run/4" do
      assert GenServer.call(start_counter([]), {:bare, "seven", []}) == {:ok, [7]}
    end

    test "an exception in handle_import is the call's error, and the state stays" do
      pid = start_counter(arg: 4)
      assert {:error, %ImportError{module: "env", name: "i"}} = Beamr.call(pid, "f", [-1])
      assert GenServer.call(pid, :count) == 4
    end

    test "what handle_import should not answer is the call's error" do
      assert {:error, %ImportError{}} = Beamr.call(start_counter([]), "f", [-2])
    end

    test "a result of the wrong type is the call's error" do
      assert {:error, %ImportError{kind: :result, given: "three"}} =
               Beamr.call(start_counter([]), "f", [-3])
    end

    test "imports: come before handle_import" do
      pid = start_counter(imports: %{"env" => %{"i" => fn _wasm, n -> n * 100 end}})
      assert Beamr.call(pid, "f", [2]) == {:ok, [200]}
      assert GenServer.call(pid, :count) == 0
    end

    test "imports: and handle_import are mixed" do
      source = """
      (module
        (import "env" "i" (func $i (param i32) (result i32)))
        (import "env" "j" (func $j (param i32) (result i32)))
        (func (export "f") (result i32) (i32.add (call $i (i32.const 2)) (call $j (i32.const 3)))))
      """

      pid =
        start_counter(
          module: source,
          arg: 10,
          imports: %{"env" => %{"j" => fn _, n -> n * 100 end}}
        )

      assert Beamr.call(pid, "f", []) == {:ok, [310]}
      assert GenServer.call(pid, :count) == 12
    end

    test "an import that is no function is missing" do
      source = ~S|(module (import "env" "memory" (memory 1)))|

      assert {:error, %LinkError{imports: [%{problem: :missing, name: "memory", given: nil}]}} =
               Counter.start_link(module: source, arg: 0)
    end

    test "the start function's imports see the state" do
      source = """
      (module
        (import "env" "i" (func $i (param i32) (result i32)))
        (func $start (drop (call $i (i32.const 5))))
        (start $start))
      """

      assert GenServer.call(start_counter(module: source, arg: 1), :count) == 6
    end

    test "the imports of init: see the state" do
      assert GenServer.call(start_counter(arg: 1, init: &Beamr.call!(&1, "f", [5])), :count) == 6
    end

    test "a reset keeps the state" do
      pid = start_counter(arg: 1, on_trap: :reset)
      Beamr.call!(pid, "f", [5])
      assert {:error, %Trap{}} = Beamr.call(pid, "trap", [])
      assert GenServer.call(pid, :count) == 6
    end

    test "a process that has the instance cannot reach the state" do
      test = self()
      start_counter(init: fn wasm -> tell(test, {:instance, wasm}, :ok) end)
      assert_received {:instance, wasm}
      assert {:error, %ImportError{}} = Beamr.call(wasm, "f", [1])
    end

    test "handle_cast" do
      pid = start_counter([])
      GenServer.cast(pid, {:add, 3})
      assert GenServer.call(pid, :count) == 3
    end

    test "handle_info" do
      pid = start_counter([])
      send(pid, {:add, 3})
      assert GenServer.call(pid, :count) == 3
    end

    test "handle_continue" do
      pid = start_counter(arg: 5)
      assert GenServer.call(pid, :later) == {:continued, 5}
      assert GenServer.call(pid, :count) == 6
    end

    test "init/1 may continue, as GenServer's" do
      pid = start_counter(arg: {:continue, 3})
      assert GenServer.call(pid, :count) == 3
      assert Beamr.call(pid, "seven", []) == {:ok, [7]}
    end

    test "handle_call may hibernate" do
      pid = start_counter([])
      assert GenServer.call(pid, :hibernate) == :ok
      assert Beamr.call(pid, "seven", []) == {:ok, [7]}
    end

    test "handle_call may stop" do
      pid = start_counter([])
      monitor = Process.monitor(pid)
      assert GenServer.call(pid, :stop) == :stopped
      assert_receive {:DOWN, ^monitor, _, _, :normal}, 10_000
    end

    test "handle_cast may stop" do
      pid = start_counter([])
      monitor = Process.monitor(pid)
      GenServer.cast(pid, :stop)
      assert_receive {:DOWN, ^monitor, _, _, :normal}, 10_000
    end

    test "what is no answer of a callback stops the server" do
      pid = start_counter([])
      assert {{:bad_return_value, :bad}, _} = catch_exit(GenServer.call(pid, :bad))
    end

    test "terminate gets the reason and the state" do
      pid = start_counter(arg: {:trap_exit, self()})
      GenServer.stop(pid, :shutdown)
      assert_received {:terminate, :shutdown, ^pid}
    end

    test "init/1 may stop" do
      Process.flag(:trap_exit, true)
      assert Counter.start_link(module: @importer, arg: :stop) == {:error, :not_today}
    end

    test "init/1 may be ignored" do
      assert Counter.start_link(module: @importer, arg: :ignore) == :ignore
    end

    test "child_spec has the defaults of use" do
      assert %{id: Counter, restart: :transient, start: {Counter, :start_link, [opts]}} =
               Counter.child_spec(module: @importer, arg: 1)

      assert %Beamr.Module{} = opts[:module]
      assert opts[:arg] == 1
    end

    test "child_spec's options come before the defaults of use" do
      assert %{id: :a, restart: :temporary, shutdown: 1} =
               Counter.child_spec(module: @importer, id: :a, restart: :temporary, shutdown: 1)
    end

    test "an unexpected message is logged, as by GenServer" do
      pid = start_supervised!({Bare, module: @importer})

      assert capture_log(fn ->
               send(pid, :what)
               assert Beamr.call(pid, "f", [1]) == {:ok, [1]}
             end) =~ "unexpected message: :what"
    end

    test "an unexpected call stops the server" do
      pid = start_supervised!({Bare, module: @importer, restart: :temporary})
      monitor = Process.monitor(pid)
      assert catch_exit(GenServer.call(pid, :what))
      assert_receive {:DOWN, ^monitor, _, _, _}, 10_000
    end
  end

  defmodule Plain do
    use GenServer

    @impl true
    def init(source) do
      log = fn _wasm, n ->
        send(self(), {:log, n})
        n
      end

      {:ok, wasm} = Beamr.instantiate(source, imports: %{"env" => %{"i" => log}})
      {:ok, {wasm, []}}
    end

    @impl true
    def handle_call({:f, n}, _from, {wasm, log}),
      do: {:reply, Beamr.call(wasm, "f", [n]), {wasm, log}}

    def handle_call(:log, _from, {wasm, log}), do: {:reply, log, {wasm, log}}

    @impl true
    def handle_info({:log, n}, {wasm, log}), do: {:noreply, {wasm, [n | log]}}
  end

  test "a plain GenServer may hold an instance" do
    pid = start_supervised!(%{id: Plain, start: {GenServer, :start_link, [Plain, @importer]}})
    assert GenServer.call(pid, {:f, 3}) == {:ok, [3]}
    assert GenServer.call(pid, :log) == [3]
  end

  describe "under a supervisor" do
    test "a server that is killed starts afresh" do
      name = unique_name()
      pid = start_supervised!({Server, module: @guest, name: name, init: "init"})
      Beamr.call!(name, "set", [50])
      kill_and_await_restart(name, pid)
      assert Beamr.call(name, "get", []) == {:ok, [1]}
    end

    test "memory by name is the new server's after a restart" do
      name = unique_name()
      pid = start_supervised!({Server, module: @guest, name: name})
      Beamr.IO.write!(name, 0, "old")
      kill_and_await_restart(name, pid)
      assert Beamr.IO.read(name, 0, 3) == {:ok, <<0, 0, 0>>}
    end

    test "shuts down during an endless call within the shutdown time" do
      pid = start_supervised!({Server, module: @guest, shutdown: 5_000}, id: :looping)
      start_loop(pid)
      {time, :ok} = :timer.tc(fn -> stop_supervised!(:looping) end)
      assert time < 2_500_000
    end

    test "is killed at the shutdown time when it traps exits" do
      opts = [module: @guest, arg: {:trap_exit, self()}, shutdown: 50]
      pid = start_supervised!({Counter, opts}, id: :stubborn)
      monitor = Process.monitor(pid)
      start_loop(pid)
      {time, :ok} = :timer.tc(fn -> stop_supervised!(:stubborn) end)
      assert_receive {:DOWN, ^monitor, _, _, :killed}
      assert time < 2_500_000
    end

    test "terminates orderly when it traps exits" do
      opts = [module: @guest, arg: {:trap_exit, self()}]
      pid = start_supervised!({Counter, opts}, id: :orderly)
      stop_supervised!(:orderly)
      assert_received {:terminate, :shutdown, ^pid}
    end

    test "1,000 servers of one module are started, called and stopped" do
      module = Beamr.compile!(@guest)
      supervisor = start_supervised!({DynamicSupervisor, strategy: :one_for_one}, id: :thousand)

      pids =
        for n <- 1..1_000 do
          init = &Beamr.call!(&1, "set", [n])
          spec = {Server, module: module, init: init, restart: :temporary}
          {:ok, pid} = DynamicSupervisor.start_child(supervisor, spec)
          {n, pid}
        end

      answers =
        Task.async_stream(pids, fn {n, pid} -> {n, Beamr.call(pid, "get", [])} end)
        |> Enum.map(fn {:ok, answer} -> answer end)

      assert answers == for(n <- 1..1_000, do: {n, {:ok, [n]}})
      assert for({_n, pid} <- pids, uniq: true, do: Beamr.IO.size!(pid)) == [65_536]

      stop_supervised!(:thousand)

      eventually(fn ->
        Enum.all?(pids, fn {_n, pid} -> Registry.lookup(Beamr.Registry, pid) == [] end)
      end)

      assert {:noproc, _} = catch_exit(Beamr.call(pids |> hd() |> elem(1), "get", []))
    end

    test "PartitionSupervisor serves by key" do
      name = unique_name()
      child = {Server, module: @guest, on_trap: :keep}
      start_supervised!({PartitionSupervisor, name: name, child_spec: child, partitions: 4})
      for key <- 0..3, do: Beamr.call!({:via, PartitionSupervisor, {name, key}}, "set", [key])

      assert for(
               key <- 0..7,
               do: Beamr.call!({:via, PartitionSupervisor, {name, key}}, "get", [])
             ) ==
               for(key <- 0..7, do: [rem(key, 4)])

      assert Beamr.IO.read({:via, PartitionSupervisor, {name, 2}}, 0, 1) == {:ok, <<2>>}
    end

    test ":pg finds servers on top of their pids" do
      scope = unique_name()
      start_supervised!(%{id: scope, start: {:pg, :start_link, [scope]}})
      pids = for _ <- 1..3, do: start([])
      :pg.join(scope, :guests, pids)
      for pid <- :pg.get_members(scope, :guests), do: Beamr.call!(pid, "set", [3])
      assert for(pid <- pids, do: Beamr.call!(pid, "get", [])) == [[3], [3], [3]]
      kill(hd(pids))
      eventually(fn -> length(:pg.get_members(scope, :guests)) == 2 end)
    end
  end

  describe "hot code" do
    defp version(name, factor) do
      """
      defmodule #{inspect(name)} do
        use Beamr.Server
        def init(state), do: {:ok, state}
        def handle_import(_name, [n], _wasm, calls), do: {:reply, n * #{factor}, calls + 1}
        def handle_call(:calls, _from, calls), do: {:reply, {#{factor}, calls}, calls}
      end
      """
    end

    test "a running server uses the new code of its callback module, and keeps its state" do
      name = Module.concat(__MODULE__, "Hot#{System.unique_integer([:positive])}")
      Code.compile_string(version(name, 1))
      pid = start_supervised!({name, module: @importer, arg: 0})
      assert Beamr.call(pid, "f", [5]) == {:ok, [5]}

      # More than two versions, so that code that is still in use would kill the server.
      for factor <- 10..13 do
        ExUnit.CaptureIO.capture_io(:stderr, fn -> Code.compile_string(version(name, factor)) end)
        assert Beamr.call(pid, "f", [5]) == {:ok, [5 * factor]}
        assert GenServer.call(pid, :calls) == {factor, factor - 8}
      end
    end
  end

  describe "seeing it" do
    defp status(pid) do
      {:status, ^pid, {:module, :gen_server}, [_pdict, _state, _parent, _debug, data]} =
        :sys.get_status(pid)

      Enum.find_value(data, fn
        {:data, [{~c"State", state}]} -> state
        _ -> nil
      end)
    end

    test ":sys.get_status shows name, memory, calls and traps" do
      pid = start(on_trap: :keep)
      Beamr.call(pid, "get", [])
      Beamr.call(pid, "trap", [])

      assert %{module: "guest", memory_size: 65_536, calls: 2, traps: 1, on_trap: :keep} =
               status(pid)
    end

    test ":sys.get_status shows the callback module's state" do
      assert %{state: 5, module: "importer", calls: 0} = status(start_counter(arg: 5))
    end

    test "Inspect shows names" do
      module = Beamr.compile!(@guest)
      assert inspect(module) == "#Beamr.Module<guest>"
      assert inspect(Beamr.instantiate!(module)) == "#Beamr.Instance<guest>"
      assert inspect(Beamr.instantiate!("(module)")) == "#Beamr.Instance<unnamed>"
    end

    test "Inspect does not need the guest" do
      wasm = Beamr.instantiate!(@guest)
      Beamr.close(wasm)
      assert inspect(wasm) == "#Beamr.Instance<guest>"
    end

    test "Inspect does not wait for a guest in a call" do
      wasm = Beamr.instantiate!(endless())
      task = start_endless(wasm)
      assert inspect(wasm) == "#Beamr.Instance<unnamed>"
      Task.shutdown(task, :brutal_kill)
    end
  end
end
