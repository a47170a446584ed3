defmodule Beamr.TelemetryTest do
  # A :telemetry of the whole node would get what other tests do.
  use Beamr.Case, async: false

  alias Beamr.{CallError, CompileError, ImportError, LinkError, Telemetry, Trap}

  doctest Beamr.Telemetry

  @moduletag capture_log: true

  @guest """
  (module $guest
    (import "env" "i" (func $i))
    (memory (export "memory") 1 3)
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
    (func (export "grow_and_trap") (drop (memory.grow (i32.const 1))) unreachable)
    (func (export "trap") unreachable)
    (func (export "import") (call $i))
    (func (export "loop") (loop (br 0)))
    (table (export "t") funcref (elem $f))
    (func $f (result i32) (i32.const 7)))
  """

  # What the library :telemetry has of use here: it tells the process named after this module.
  defp load_telemetry do
    code =
      quote do
        def execute(event, measurements, metadata) do
          send(unquote(__MODULE__), {:event, event, measurements, metadata, self()})
          :ok
        end
      end

    {:module, :telemetry, _binary, _term} = Module.create(:telemetry, code, __ENV__)
    Process.register(self(), __MODULE__)
    true = Telemetry.detect()
  end

  defp unload_telemetry do
    :code.purge(:telemetry)
    :code.delete(:telemetry)
    :code.purge(:telemetry)
    Telemetry.detect()
  end

  setup context do
    unless context[:without], do: load_telemetry()
    on_exit(&unload_telemetry/0)
    :ok
  end

  # All events of this function, in order. They are sent by this process, or by a server before
  # it answers.
  defp events(function) do
    function.()
    receive_events()
  end

  defp receive_events do
    receive do
      {:event, event, measurements, metadata, _pid} ->
        [{event, measurements, metadata} | receive_events()]
    after
      0 -> []
    end
  end

  defp guest(opts \\ []) do
    import = Keyword.get(opts, :import, fn _wasm -> :ok end)
    wasm = Beamr.instantiate!(@guest, imports: %{"env" => %{"i" => import}})
    receive_events()
    wasm
  end

  defp recent?(system_time) do
    age = System.system_time() - system_time
    age >= 0 and System.convert_time_unit(age, :native, :second) < 60
  end

  defp names(events), do: for({event, _measurements, _metadata} <- events, do: event)

  describe "compile" do
    test "has a start and a stop" do
      size = byte_size(@guest)

      assert [
               {[:beamr, :compile, :start], start, start_metadata},
               {[:beamr, :compile, :stop], stop, stop_metadata}
             ] = events(fn -> Beamr.compile!(@guest) end)

      assert Map.keys(start) == [:system_time]
      assert recent?(start.system_time)
      assert start_metadata == %{size: size}
      assert Map.keys(stop) == [:duration]
      assert stop.duration > 0
      assert stop_metadata == %{size: size, error: nil}
    end

    test "tells the error" do
      assert [_start, {[:beamr, :compile, :stop], _, %{error: error}}] =
               events(fn -> Beamr.compile("(module (nope))") end)

      assert %CompileError{reason: :invalid_wat} = error
    end

    @tag :tmp_dir
    test "is there for files", %{tmp_dir: dir} do
      path = Path.join(dir, "guest.wat")
      File.write!(path, "(module)")

      assert [_start, {[:beamr, :compile, :stop], _, %{size: 8, error: nil}}] =
               events(fn -> Beamr.compile_file!(path) end)
    end

    test "happens once for a supervised server, however often it is restarted" do
      child = {Beamr.Server, module: "(module)", name: :telemetry_guest}

      events =
        events(fn ->
          pid = start_supervised!(child)
          Process.exit(pid, :kill)

          eventually(fn ->
            Process.whereis(:telemetry_guest) not in [nil, pid] and
              match?({_, {:ok, _}}, {pid, size_of(:telemetry_guest)})
          end)
        end)

      assert Enum.count(names(events), &(&1 == [:beamr, :compile, :start])) == 1
      assert Enum.count(names(events), &(&1 == [:beamr, :instantiate, :start])) == 2
    end

    defmodule Callback do
      use Beamr.Server

      @impl true
      def init(arg), do: {:ok, arg}

      @impl true
      def handle_import(_name, _args, _wasm, state), do: {:reply, nil, state}
    end

    test "happens once for a child of a callback module" do
      events = events(fn -> Callback.child_spec(module: "(module)") end)
      assert names(events) == [[:beamr, :compile, :start], [:beamr, :compile, :stop]]
    end
  end

  defp size_of(name) do
    Beamr.IO.size(name)
  catch
    :exit, {:noproc, _} -> :noproc
  end

  describe "instantiate" do
    test "has a start and a stop" do
      module = Beamr.compile!("(module $simple)")
      receive_events()

      assert [
               {[:beamr, :instantiate, :start], start, start_metadata},
               {[:beamr, :instantiate, :stop], stop, stop_metadata}
             ] = events(fn -> Beamr.instantiate!(module) end)

      assert Map.keys(start) == [:system_time]
      assert recent?(start.system_time)
      assert start_metadata == %{module: "simple"}
      assert Map.keys(stop) == [:duration]
      assert stop.duration > 0
      assert stop_metadata == %{module: "simple", error: nil}
    end

    test "has nil for a module without a name" do
      assert [_, _, {[:beamr, :instantiate, :start], _, %{module: nil}}, _] =
               events(fn -> Beamr.instantiate!("(module)") end)
    end

    test "tells a link error" do
      assert {[:beamr, :instantiate, :stop], _, %{error: %LinkError{}}} =
               List.last(events(fn -> Beamr.instantiate(@guest) end))
    end

    test "tells a trap of the start function" do
      source = "(module (func $start unreachable) (start $start))"

      assert {[:beamr, :instantiate, :stop], _, %{error: %Trap{reason: :unreachable}}} =
               List.last(events(fn -> Beamr.instantiate(source) end))
    end
  end

  describe "call" do
    test "has a start and a stop" do
      wasm = guest()

      assert [
               {[:beamr, :call, :start], start, start_metadata},
               {[:beamr, :call, :stop], stop, stop_metadata}
             ] = events(fn -> Beamr.call!(wasm, "add", [1, 2]) end)

      assert Map.keys(start) == [:system_time]
      assert recent?(start.system_time)
      assert start_metadata == %{module: "guest", function: "add"}
      assert Map.keys(stop) == [:duration]
      assert stop.duration > 0
      assert stop_metadata == %{module: "guest", function: "add", error: nil}
    end

    test "has the handle of a function that was called by one" do
      wasm = guest()
      f = Beamr.Instance.table_get!(wasm, "t", 0)

      assert [{_, _, %{function: ^f}}, {_, _, %{function: ^f}}] =
               events(fn -> Beamr.call!(wasm, f, []) end)
    end

    test "measures the duration in native units" do
      wasm = guest()

      assert [_, {_, %{duration: duration}, _}] =
               events(fn -> Beamr.call(wasm, "loop", [], timeout: 20) end)

      milliseconds = System.convert_time_unit(duration, :native, :millisecond)
      assert milliseconds in 19..5_000
    end

    test "tells the error" do
      wasm = guest(import: fn _wasm -> raise "no" end)

      for {function, args, error} <- [
            {"nope", [], CallError},
            {"add", [1], CallError},
            {"trap", [], Trap},
            {"import", [], ImportError}
          ] do
        assert [_, {[:beamr, :call, :stop], _, %{error: %{__struct__: ^error}}}] =
                 events(fn -> Beamr.call(wasm, function, args) end)
      end
    end

    test "is nested for nested calls" do
      wasm = guest(import: fn wasm -> Beamr.call!(wasm, "add", [1, 2]) end)
      events = events(fn -> Beamr.call!(wasm, "import", []) end)

      assert for({[_, _, event], _, %{function: function}} <- events, do: {function, event}) == [
               {"import", :start},
               {"add", :start},
               {"add", :stop},
               {"import", :stop}
             ]
    end

    test "is emitted in the server that runs the guest" do
      pid = start_supervised!({Beamr.Server, module: "(module (func (export \"f\")))"})
      receive_events()
      Beamr.call!(pid, "f", [])
      assert_received {:event, [:beamr, :call, :start], _, %{function: "f"}, ^pid}
      assert_received {:event, [:beamr, :call, :stop], _, %{function: "f"}, ^pid}
    end

    test "is there for malloc" do
      wasm = Beamr.instantiate!("(module (memory 1) #{bump_malloc()})")
      receive_events()

      assert [{_, _, %{function: "malloc"}}, _] = events(fn -> Beamr.IO.malloc!(wasm, 8) end)
    end
  end

  describe "memory growth" do
    test "has sizes in bytes" do
      wasm = guest()
      events = events(fn -> Beamr.call!(wasm, "grow", [2]) end)

      assert {[:beamr, :memory, :grow], measurements, metadata} =
               List.keyfind(events, [:beamr, :memory, :grow], 0)

      assert measurements == %{size: 3 * 65_536, added: 2 * 65_536}
      assert metadata == %{module: "guest", function: "grow"}
    end

    test "is told also when the call fails" do
      wasm = guest()
      events = events(fn -> Beamr.call(wasm, "grow_and_trap", []) end)
      assert [:beamr, :memory, :grow] in names(events)
    end

    test "is not told when there is none" do
      wasm = guest()
      # The memory's own limit refuses so much.
      events = events(fn -> Beamr.call!(wasm, "grow", [100]) end)
      refute [:beamr, :memory, :grow] in names(events)
    end

    test "in a nested call is told of both calls" do
      wasm = guest(import: fn wasm -> Beamr.call!(wasm, "grow", [1]) end)
      events = events(fn -> Beamr.call!(wasm, "import", []) end)
      added = for {[:beamr, :memory, :grow], %{added: added}, _} <- events, do: added
      assert added == [65_536, 65_536]
    end
  end

  describe ":exception" do
    test "is what raised instead of answering, which goes on" do
      assert [
               {[:beamr, :call, :start], _, _},
               {[:beamr, :call, :exception], measurements, metadata}
             ] =
               events(fn ->
                 assert_raise RuntimeError, "no", fn ->
                   Telemetry.span(:call, %{module: nil, function: "f"}, fn -> raise "no" end)
                 end
               end)

      assert Map.keys(measurements) == [:duration]

      assert %{
               module: nil,
               function: "f",
               error: nil,
               kind: :error,
               reason: %RuntimeError{message: "no"},
               stacktrace: [_ | _]
             } = metadata
    end
  end

  describe "without :telemetry" do
    @describetag :without

    test "there is none" do
      refute Telemetry.detect()
    end

    test "nothing is emitted, and everything works" do
      Process.register(self(), __MODULE__)
      wasm = guest()
      assert Beamr.call(wasm, "add", [1, 2]) == {:ok, [3]}
      assert Beamr.call(wasm, "grow", [1]) == {:ok, [1]}
      assert {:error, %CompileError{}} = Beamr.compile("(module (nope))")
      assert receive_events() == []
    end

    test "it is noticed by detect/0 when it comes and when it goes" do
      load_telemetry()
      assert Telemetry.on?()
      refute unload_telemetry()
      Beamr.compile!("(module)")
      assert receive_events() == []
    end
  end
end
