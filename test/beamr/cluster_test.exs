defmodule Beamr.ClusterTest do
  use Beamr.Case, async: false

  alias Beamr.{CallError, ImportError, Instance, MemoryError, Server, Trap}

  @moduletag :cluster
  @moduletag capture_log: true
  @moduletag timeout: 60_000

  # `f` calls an import that is a function of the other node.
  @guest """
  (module $guest
    (import "env" "where" (func $where (param externref) (result externref)))
    (memory (export "memory") 1 4)
    (global (export "g") (mut i32) (i32.const 7))
    (table (export "t") 2 8 externref)
    (table (export "functions") funcref (elem $get))
    (global $next (mut i32) (i32.const 1024))
    (func (export "add") (param i32 i32) (result i32)
      (i32.add (local.get 0) (local.get 1)))
    (func $get (export "get") (result i32) (i32.load (i32.const 0)))
    (func (export "where") (param externref) (result externref) (call $where (local.get 0)))
    (func (export "trap") unreachable)
    (func (export "loop")
      (i32.store (i32.const 0) (i32.const 1))
      (loop (br 0)))
    (func (export "malloc") (param i32) (result i32)
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 0))))
    (func (export "free") (param i32)))
  """

  setup_all do
    unless Node.alive?() do
      # Names are kept by a daemon, which may not be running yet.
      {_output, 0} = System.cmd("epmd", ["-daemon"])
      {:ok, _pid} = Node.start(:"beamr_test_#{System.pid()}", :shortnames)
      on_exit(&Node.stop/0)
    end

    # Most tests share a node. Those that halt it or change its code make one of their own.
    %{node: start_peer()}
  end

  defp start_peer do
    {:ok, peer, node} =
      :peer.start(%{
        name: :peer.random_name(),
        args: [~c"-pa" | :code.get_path()],
        wait_boot: 30_000
      })

    on_exit(fn -> stop_peer(peer) end)
    {:ok, _apps} = :erpc.call(node, Application, :ensure_all_started, [:beamr])
    :ok = :erpc.call(node, Logger, :configure, [[level: :none]])
    share_this_module(node)
    node
  end

  # The peer's own process here ends when its node does, which may be just now.
  defp stop_peer(peer) do
    :peer.stop(peer)
  catch
    :exit, _reason -> :ok
  end

  @doc false
  def where(_wasm, _term), do: {node(), self()}

  # Servers are started for good, not under the process that :erpc makes.
  @doc false
  def start_unlinked(opts) do
    {:ok, pid} = Server.start_link(opts)
    Process.unlink(pid)
    pid
  end

  @doc false
  def start_counter(opts) do
    {:ok, pid} = __MODULE__.Counter.start_link(opts)
    Process.unlink(pid)
    pid
  end

  defmodule Counter do
    use Beamr.Server

    @after_compile __MODULE__
    def __after_compile__(env, binary) do
      key = {Beamr.ClusterTest, env.module}
      :persistent_term.put(key, {env.module, binary, to_charlist(env.file)})
    end

    @impl true
    def init(start), do: {:ok, start}

    @impl true
    def handle_import({"env", "where"}, [term], _wasm, count) do
      {:reply, {node(), term, count}, count + 1}
    end
  end

  defp start_server(node, opts \\ []) do
    imports = %{"env" => %{"where" => &__MODULE__.where/2}}
    opts = Keyword.merge([module: @guest, imports: imports], opts)
    :erpc.call(node, __MODULE__, :start_unlinked, [opts])
  end

  defp share_this_module(node) do
    for module <- [__MODULE__, Counter] do
      {module, binary, file} = code(module)
      {:module, ^module} = :erpc.call(node, :code, :load_binary, [module, file, binary])
    end
  end

  # Test modules are compiled in memory, and kept by the `after_compile` below.
  defp code(module), do: :persistent_term.get({__MODULE__, module})

  @after_compile __MODULE__
  @doc false
  def __after_compile__(env, binary) do
    :persistent_term.put({__MODULE__, env.module}, {env.module, binary, to_charlist(env.file)})
  end

  # Whatever exits, raises or answers, and how long it took.
  defp outcome(function) do
    {time, outcome} =
      :timer.tc(fn ->
        try do
          {:answer, function.()}
        catch
          kind, reason -> {kind, reason}
        end
      end)

    {outcome, div(time, 1_000)}
  end

  defp start_loop(server) do
    test = self()

    {:ok, pid} =
      Task.start(fn ->
        {outcome, _time} = outcome(fn -> Beamr.call(server, "loop", [], timeout: :infinity) end)

        send(test, {:ended, self(), outcome})
      end)

    eventually(fn -> Beamr.IO.read!(server, 0, 1) == <<1>> end)
    pid
  end

  test "structs, views and allocators reach a guest of another node", %{node: node} do
    pid = start_server(node)
    point = Beamr.Struct.new(x: :f64, y: :f64)
    assert Beamr.Struct.write(pid, 16, point, %{x: 1, y: :nan}) == :ok
    assert Beamr.Struct.update(pid, 16, point, %{x: 2.0}) == :ok
    assert Beamr.Struct.read(pid, 16, point) == {:ok, %{x: 2.0, y: :nan}}

    view = Beamr.View.new!(pid, 16, 8)
    assert Beamr.View.read_f64(view, 0) == {:ok, 2.0}

    {:ok, bump} = Task.await(Task.async(fn -> Beamr.Allocator.Bump.new(pid, owner: pid) end))
    assert node(bump.pid) == node
    assert Beamr.Allocator.alloc(bump, 8) == {:ok, 65_536}
    assert Beamr.IO.size(pid) == {:ok, 131_072}
    assert {:error, %{reason: :overlap}} = Beamr.Allocator.Stack.new(pid)
    assert Beamr.Allocator.close(bump) == :ok

    # It ends with its owner, who is here.
    {:ok, stack} = Task.await(Task.async(fn -> Beamr.Allocator.Stack.new(pid) end))
    eventually(fn -> not :erpc.call(node, Process, :alive?, [stack.pid]) end)
    assert {:error, %{reason: :closed}} = Beamr.Allocator.alloc(stack, 8)
  end

  describe "a server on another node" do
    test "is used by pid, name and global name like a local one", %{node: node} do
      global = {:global, make_ref()}
      pid = start_server(node, name: :far)
      start_server(node, name: global)
      eventually(fn -> is_pid(GenServer.whereis(global)) end)

      for far <- [pid, {:far, node}, global] do
        assert Beamr.call(far, "add", [1, 2]) == {:ok, [3]}
        assert Beamr.call!(far, "add", [1, 2], timeout: 1_000, scheduler: :dirty) == [3]
        assert {:error, %CallError{reason: :unknown_function}} = Beamr.call(far, "nope", [])
        assert Beamr.interrupt(far) == :ok
      end
    end

    test "has its memory read and written", %{node: node} do
      far = start_server(node)
      assert Beamr.IO.size(far) == {:ok, 65_536}
      assert Beamr.IO.write(far, 8, ["hel", "lo", 0]) == :ok
      assert Beamr.IO.read(far, 8, 5) == {:ok, "hello"}
      assert Beamr.IO.read!(far, 8, 5, memory: "memory") == "hello"
      assert Beamr.IO.read_string(far, 8) == {:ok, "hello"}
      assert {:error, %MemoryError{reason: :out_of_bounds}} = Beamr.IO.read(far, 65_536, 1)
    end

    test "allocates", %{node: node} do
      far = start_server(node)
      assert {:ok, 1024} = Beamr.IO.write_string(far, "hello")
      assert Beamr.IO.read_string(far, 1024) == {:ok, "hello"}
      assert Beamr.IO.malloc(far, 10) == {:ok, 1030}
      assert Beamr.IO.free(far, 1024) == :ok
    end

    test "has its allocations counted and lent", %{node: node} do
      far = start_server(node)
      {:ok, pointer} = Beamr.IO.write_string(far, "hello")
      # A process of this node is none of that one's.
      assert Beamr.IO.held(far) == {:ok, [{pointer, 6, nil}]}
      assert Beamr.IO.with_string(far, "lent", &Beamr.IO.read_string!(far, &1)) == {:ok, "lent"}
      assert Beamr.IO.free(far, pointer) == :ok
      assert Beamr.IO.held_count(far) == {:ok, 0}
    end

    test "has numbers, text and blocks in its memory, which also grows", %{node: node} do
      far = start_server(node)
      assert Beamr.IO.write_i32(far, 8, -5) == :ok
      assert Beamr.IO.read_u32(far, 8) == {:ok, 2 ** 32 - 5}
      assert {:error, %MemoryError{reason: :value_out_of_range}} = Beamr.IO.write_i8(far, 0, 128)
      assert Beamr.IO.write_array(far, 8, :f64, [1.5, :nan]) == :ok
      assert Beamr.IO.read_array(far, 8, :f64, 2) == {:ok, [1.5, :nan]}
      assert Beamr.IO.write_many(far, [{0, :u8, 1}, {1, "x"}]) == :ok
      assert Beamr.IO.read_many(far, [{0, :u8}, {1, 1}]) == {:ok, [1, "x"]}
      assert_raise ArgumentError, fn -> Beamr.IO.write_array(far, 0, :u8, [:x]) end
      assert Beamr.IO.write_utf8(far, 0, "é") == {:ok, 2}
      assert Beamr.IO.read_utf8(far, 0, 2) == {:ok, "é"}
      assert Beamr.IO.fill(far, 0, ?x, 4) == :ok
      assert Beamr.IO.hexdump(far, 0, 2) == {:ok, "78 78"}
      assert Beamr.IO.find(far, 0, 4, "xx") == {:ok, 0}
      assert Beamr.IO.valid_range?(far, 65_536, 0)
      assert Beamr.IO.grow(far, 1) == {:ok, 1}
      assert Beamr.IO.pages(far) == {:ok, 2}
    end

    test "is copied from and to, and compared, on one node and across", %{node: node} do
      {far, other} = {start_server(node), start_server(node)}
      near = Beamr.instantiate!(~S|(module (memory (export "m") 1) (memory (export "n") 1))|)
      :ok = Beamr.IO.write(far, 0, "hello")
      assert Beamr.IO.copy(far, 8, 0, 5) == :ok
      assert Beamr.IO.copy(other, 16, {far, 8}, 5) == :ok
      assert Beamr.IO.compare(far, 0, {other, 16}, 5) == {:ok, :eq}
      assert Beamr.IO.copy(near, 24, {other, 16}, 5, memory: "n") == :ok
      assert Beamr.IO.compare(near, 24, {far, 0}, 5, memory: "n") == {:ok, :eq}
      assert Beamr.IO.compare(far, 0, {near, 24}, 5) == {:ok, :gt}
      assert Beamr.IO.compare(near, 24, {far, 0}, 5) == {:ok, :lt}
      assert Beamr.IO.copy(far, 32, {near, 24}, 5, source_memory: "n") == :ok
      assert Beamr.IO.read(far, 32, 5) == {:ok, "hello"}

      assert {:error, %MemoryError{reason: :out_of_bounds, offset: 65_536}} =
               Beamr.IO.copy(near, 0, {far, 65_536}, 1)
    end

    test "has its globals and tables reached", %{node: node} do
      far = start_server(node)
      assert Instance.set_global(far, "g", 5) == :ok
      assert Instance.get_global(far, "g") == {:ok, 5}
      assert Instance.table_set(far, "t", 0, {:a, self()}) == :ok
      assert Instance.table_get(far, "t", 0) == {:ok, {:a, self()}}
      assert Instance.table_size(far, "t") == {:ok, 2}
      assert Instance.table_grow(far, "t", 1, nil) == {:ok, 2}
    end

    test "has its function handles for itself: they are none elsewhere", %{node: node} do
      far = start_server(node)
      {:ok, get} = Instance.table_get(far, "functions", 0)
      assert {:error, %{reason: :foreign_function}} = Beamr.call(far, get, [])
    end

    test "has its fuel looked at", %{node: node} do
      far = start_server(node, fuel: 1_000)
      assert Instance.fuel(far) == {:ok, 1_000}
      assert Instance.add_fuel(far, 5) == {:ok, 1_005}
    end

    test "has WASI there, and writes to a process here", %{node: node} do
      wasm = File.read!("test/guests/reactor.wasm")
      far = start_server(node, module: wasm, wasi: [stdout: self(), stderr: :buffer])
      assert Beamr.call(far, "say", [1]) == {:ok, []}
      assert_receive {:beamr_stdout, %Instance{}, "number 1\n"}
      assert Beamr.WASI.take_output(far, :stderr) == ""

      {outcome, _time} = outcome(fn -> Beamr.call(far, "sleep", [10_000], timeout: 50) end)
      assert {:answer, {:error, %CallError{reason: :timeout}}} = outcome
      assert Beamr.call(far, "initialized", []) == {:ok, [1]}
    end

    test "runs its imports in its own process, on its own node", %{node: node} do
      far = start_server(node)
      assert Beamr.call(far, "where", [nil]) == {:ok, [{node, far}]}
    end

    test "keeps its imports' state on its own node", %{node: node} do
      far = :erpc.call(node, __MODULE__, :start_counter, [[module: @guest, arg: 1]])
      assert Beamr.call(far, "where", [:a]) == {:ok, [{node, :a, 1}]}
      assert Beamr.call(far, "where", [:b]) == {:ok, [{node, :b, 2}]}
    end

    test "runs imports that live on neither side's node", %{node: node} do
      third = start_peer()
      # The import's code is on the third node; the server and the caller only know to ask there.
      imports = %{
        "env" => %{"where" => fn _wasm, _term -> :erpc.call(third, :erlang, :node, []) end}
      }

      far = start_server(node, imports: imports)
      assert Beamr.call(far, "where", [nil]) == {:ok, [third]}
    end

    test "answers errors as a local one does", %{node: node} do
      far = start_server(node, on_trap: :keep)
      assert {:error, %Trap{reason: :unreachable}} = Beamr.call(far, "trap", [])

      raises = fn _wasm, _term -> raise "no" end
      far = start_server(node, imports: %{"env" => %{"where" => raises}})
      assert {:error, %ImportError{}} = Beamr.call(far, "where", [nil])
      assert_raise RuntimeError, "no", fn -> Beamr.call!(far, "where", [nil]) end
    end

    test "raises as a local one does", %{node: node} do
      far = start_server(node)
      assert_raise ArgumentError, fn -> Beamr.IO.write(far, 0, [:no_iodata]) end
      assert_raise ArgumentError, fn -> Beamr.IO.read(far, 0, 1, nope: 1) end
    end

    test "ends a call whose time is up", %{node: node} do
      far = start_server(node)
      assert {:error, %CallError{reason: :timeout}} = Beamr.call(far, "loop", [], timeout: 20)
      assert Beamr.call(far, "add", [1, 2]) == {:ok, [3]}
    end

    test "has its memory read while it is in a call", %{node: node} do
      far = start_server(node)
      start_loop(far)
      assert Beamr.IO.write(far, 16, "hello") == :ok
      assert Beamr.IO.read(far, 16, 5) == {:ok, "hello"}
    end

    test "is freed when the client of an endless call dies", %{node: node} do
      far = start_server(node)
      kill(start_loop(far))
      assert Beamr.call(far, "add", [1, 2], timeout: 3_000) == {:ok, [3]}
    end

    test "is freed when the client's node goes down", %{node: node} do
      far = start_server(node)
      other = start_peer()

      :erpc.cast(other, Beamr, :call, [far, "loop", [], [timeout: :infinity]])
      eventually(fn -> Beamr.IO.read!(far, 0, 1) == <<1>> end)
      :erpc.cast(other, :erlang, :halt, [])
      assert Beamr.call(far, "add", [1, 2], timeout: 5_000) == {:ok, [3]}
    end

    test "is started by a supervisor there, and restarted", %{node: node} do
      imports = %{"env" => %{"where" => &__MODULE__.where/2}}
      child = {Server, module: @guest, imports: imports, name: :supervised}

      supervisor =
        :erpc.call(node, fn ->
          {:ok, pid} = Supervisor.start_link([child], strategy: :one_for_one)
          Process.unlink(pid)
          pid
        end)

      far = {:supervised, node}
      Beamr.IO.write!(far, 0, "old")
      assert {:error, %Trap{}} = Beamr.call(far, "trap", [])

      eventually(fn ->
        match?({{:answer, {:ok, <<0, 0, 0>>}}, _}, outcome(fn -> Beamr.IO.read(far, 0, 3) end))
      end)

      Supervisor.stop(supervisor)
      assert {:noproc, _} = catch_exit(Beamr.call(far, "add", [1, 2]))
    end
  end

  describe "exits" do
    defp uses do
      [
        call: &Beamr.call(&1, "add", [1, 2], timeout: :infinity),
        read: &Beamr.IO.read(&1, 0, 1),
        write: &Beamr.IO.write(&1, 0, "a"),
        read_string: &Beamr.IO.read_string(&1, 0),
        write_string: &Beamr.IO.write_string(&1, "a"),
        malloc: &Beamr.IO.malloc(&1, 1),
        size: &Beamr.IO.size/1,
        get_global: &Instance.get_global(&1, "g"),
        table_size: &Instance.table_size(&1, "t"),
        interrupt: &Beamr.interrupt/1
      ]
    end

    test "with :noproc for an unknown name on the other node", %{node: node} do
      for {name, use} <- uses() do
        assert {^name, {{:exit, {:noproc, {_m, _f, _a}}}, time}} =
                 {name, outcome(fn -> use.({:nobody, node}) end)}

        assert time < 2_000
      end
    end

    test "with :noproc for a dead pid of the other node", %{node: node} do
      pid = start_server(node)
      kill(pid)

      for {name, use} <- uses(),
          do: assert({^name, {{:exit, {:noproc, _}}, _}} = {name, outcome(fn -> use.(pid) end)})
    end

    test "for a node that is not there" do
      for {name, use} <- uses() do
        assert {^name, {{:exit, {{:nodedown, :nowhere@nohost, _}, _}}, time}} =
                 {name, outcome(fn -> use.({:far, :nowhere@nohost}) end)}

        assert time < 10_000
      end
    end

    test "when the node goes down in the middle of a call" do
      node = start_peer()
      far = start_server(node)
      client = start_loop(far)
      :erpc.cast(node, :erlang, :halt, [])
      assert_receive {:ended, ^client, {:exit, {{:nodedown, ^node, _}, _}}}, 5_000
    end

    test "when the server is killed in the middle of a call", %{node: node} do
      far = start_server(node)
      client = start_loop(far)
      Process.exit(far, :kill)
      assert_receive {:ended, ^client, {:exit, {:killed, _}}}, 5_000
    end

    test "for a pid of a node that has gone down" do
      node = start_peer()
      far = start_server(node)
      :erpc.cast(node, :erlang, :halt, [])
      eventually(fn -> node not in Node.list() end)

      for {name, use} <- uses(),
          do: assert({^name, {{:exit, {_, _}}, _}} = {name, outcome(fn -> use.(far) end)})
    end
  end

  describe "hot code" do
    setup do
      node = start_peer()
      %{node: node, far: :erpc.call(node, __MODULE__, :start_counter, [[module: @guest, arg: 1]])}
    end

    test "a running server outlives new versions of Beamr's modules", %{node: node, far: far} do
      for file <- ~w(server instance guest io module error), version <- 1..3 do
        source =
          "lib/beamr/#{file}.ex"
          |> File.read!()
          |> String.replace_suffix(
            "end\n",
            "\n  @doc false\n  def version, do: #{version}\nend\n"
          )

        # As `recompile/0` does: code that is older than the last version is purged.
        assert [_ | _] = :erpc.call(node, __MODULE__, :compile_quietly, [source])
      end

      assert :erpc.call(node, Server, :version, []) == 3
      assert Beamr.call(far, "where", [:a]) == {:ok, [{node, :a, 1}]}
      assert Beamr.call(far, "where", [:b]) == {:ok, [{node, :b, 2}]}
      assert Beamr.IO.size(far) == {:ok, 65_536}
    end

    test "a call in flight outlives new versions of Beamr's modules", %{node: node, far: far} do
      client = start_loop(far)

      for file <- ~w(server instance guest) do
        source = File.read!("lib/beamr/#{file}.ex")
        assert [_ | _] = :erpc.call(node, __MODULE__, :compile_quietly, [source])
      end

      assert Beamr.interrupt(far) == :ok

      assert_receive {:ended, ^client, {:answer, {:error, %CallError{reason: :interrupted}}}},
                     5_000
    end

    test "a running server outlives a reload of the native module", %{node: node, far: far} do
      {module, binary, file} = :code.get_object_code(Beamr.Native)
      :erpc.call(node, :code, :load_binary, [module, file, binary])
      assert Beamr.call(far, "where", [:a]) == {:ok, [{node, :a, 1}]}
      assert is_pid(start_server(node))
    end
  end

  @doc false
  def compile_quietly(source) do
    Code.compiler_options(ignore_module_conflict: true)
    for {module, _binary} <- Code.compile_string(source), do: module
  end
end
