defmodule Beamr.WASITest do
  use Beamr.Case, async: true

  import ExUnit.CaptureIO

  alias Beamr.{CallError, Exit, ImportError, LinkError, Trap, WASI, WASIError}

  doctest Beamr.WASI

  defmodule Counter do
    use Beamr.Server

    @impl true
    def init(start), do: {:ok, start}

    @impl true
    def handle_import({"env", "next"}, [], _wasm, count), do: {:reply, count, count + 1}
  end

  setup_all do
    compile = &Beamr.compile_file!("test/guests/#{&1}.wasm")
    %{compiled: compile.("wasi"), reactor: compile.("reactor")}
  end

  # Runs the command with arguments; answers its exit code and what it has written.
  defp run(module, args, opts \\ []) do
    test = self()
    ref = make_ref()
    opts = Keyword.put_new(opts, :stdout, &send(test, {ref, &1}))
    {:ok, code} = WASI.run(module, [args: ["wasi" | args], timeout: 60_000] ++ opts)
    {code, received(ref, "")}
  end

  defp received(ref, output) do
    receive do
      {^ref, bytes} -> received(ref, output <> bytes)
    after
      0 -> output
    end
  end

  # An instance of the command, and a task that sleeps in it.
  defp start_sleep(module, opts \\ [timeout: :infinity]) do
    wasm = Beamr.instantiate!(module, wasi: [args: ["wasi", "sleep", "10000"]])
    task = Task.async(fn -> timed(fn -> Beamr.call(wasm, "_start", [], opts) end) end)
    await_asleep(task.pid)
    {wasm, task}
  end

  # The module's own functions wait nowhere else.
  defp await_asleep(pid) do
    eventually(fn ->
      Process.info(pid, :current_function) ==
        {:current_function, {Beamr.Instance, :await_wake, 3}}
    end)
  end

  defp timed(function) do
    {microseconds, result} = :timer.tc(function)
    {div(microseconds, 1_000), result}
  end

  describe "a program" do
    test "has its arguments", %{compiled: module} do
      assert run(module, ["args", "ä b", ""]) == {0, "wasi\nargs\nä b\n\n"}
    end

    test "has its environment, from a map or a list", %{compiled: module} do
      assert run(module, ["env"], env: %{"A" => "1"}) == {0, "A=1\n"}
      assert run(module, ["env"], env: [{"B", "x=y"}, {"A", ""}]) == {0, "B=x=y\nA=\n"}
    end

    test "exits with a code", %{compiled: module} do
      for code <- [0, 1, 125, 126, 255] do
        assert run(module, ["exit", "#{code}"]) == {code, ""}
      end

      assert run(module, ["exit", "-1"]) == {0xFFFFFFFF, ""}
    end

    test "that just returns exits with 0", %{compiled: module} do
      assert run(module, []) == {0, ""}
    end

    test "is granted nothing that was not given", %{compiled: module} do
      for nothing <- [true, [], %{}] do
        wasm = Beamr.instantiate!(module, wasi: nothing)
        assert Beamr.call(wasm, "_start", []) == {:ok, []}
      end

      assert run(module, ["env"]) == {0, ""}
      assert run(module, ["cat"]) == {0, ""}
      assert {1, _} = run(module, ["list", "/"])
      assert {1, _} = run(module, ["cat", "/etc/passwd"])
      assert {1, _} = run(module, ["cat", "mix.exs"])
    end

    test "that traps is a trap", %{compiled: module} do
      assert {:error, %Trap{reason: :unreachable}} = WASI.run(module, args: ["wasi", "abort"])
    end

    test "has no more time than it is given", %{compiled: module} do
      opts = [args: ["wasi", "sleep", "10000"], timeout: 20]
      assert {:error, %CallError{reason: :timeout}} = WASI.run(module, opts)
    end

    test "needs a _start" do
      assert {:error, %CallError{reason: :unknown_function}} = WASI.run("(module)")
      assert_raise CallError, fn -> WASI.run!("(module)") end
    end

    test "that does not compile is an error" do
      assert {:error, %Beamr.CompileError{}} = WASI.run("no module")
    end

    test "runs with its own imports and limits beside WASI's" do
      source = """
      (module
        (import "env" "code" (func $code (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func (export "_start") (call $exit (call $code))))
      """

      imports = %{"env" => %{"code" => fn _wasm -> 7 end}}
      assert WASI.run(source, imports: imports, max_memory: 65_536) == {:ok, 7}
      assert WASI.run!(source, imports: imports, fuel: 10_000) == 7
    end
  end

  describe "an exit" do
    @exit """
    (module
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (func (export "leave") (param i32) (call $exit (local.get 0)))
      (func (export "answer") (param i32) (result i32) (call $exit (local.get 0)) (i32.const 1))
      (func (export "one") (result i32) (i32.const 1)))
    """

    test "is an error with the code" do
      wasm = Beamr.instantiate!(@exit, wasi: [])
      assert {:error, %Exit{code: 3, function: "leave"} = exit} = Beamr.call(wasm, "leave", [3])
      assert Exception.message(exit) == "the guest exited with code 3"
      assert_raise Exit, fn -> Beamr.call!(wasm, "leave", [3]) end
    end

    test "with code 0 is the end of a function without results" do
      wasm = Beamr.instantiate!(@exit, wasi: [])
      assert Beamr.call(wasm, "leave", [0]) == {:ok, []}
      assert {:error, %Exit{code: 0}} = Beamr.call(wasm, "answer", [0])
    end

    test "leaves the instance usable" do
      wasm = Beamr.instantiate!(@exit, wasi: [])
      assert {:error, %Exit{}} = Beamr.call(wasm, "leave", [1])
      assert Beamr.call(wasm, "one", []) == {:ok, [1]}
    end

    test "of a start function keeps the instance from being made" do
      source = """
      (module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func $start (call $exit (i32.const 4)))
        (start $start))
      """

      assert {:error, %Exit{code: 4}} = Beamr.instantiate(source, wasi: [])
    end

    test "in a nested call ends that call" do
      source = """
      (module
        (import "env" "nest" (func $nest (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func (export "outer") (result i32) (call $nest))
        (func (export "leave") (call $exit (i32.const 5))))
      """

      nest = fn wasm ->
        {:error, %Exit{code: code}} = Beamr.call(wasm, "leave", [])
        code
      end

      wasm = Beamr.instantiate!(source, wasi: [], imports: %{"env" => %{"nest" => nest}})
      assert Beamr.call(wasm, "outer", []) == {:ok, [5]}
    end
  end

  describe "linking" do
    @import ~S|(module (import "wasi_snapshot_preview1" "sched_yield" (func $f (result i32)))
      (memory (export "memory") 1)
      (func (export "f") (result i32) (call $f)))|

    test "without wasi: says which option is missing" do
      assert {:error, %LinkError{imports: [problem]} = error} = Beamr.instantiate(@import)
      assert %{problem: :missing, name: "sched_yield"} = problem
      assert Exception.message(error) =~ "the option wasi: [] grants it"
      assert {:error, %LinkError{}} = Beamr.instantiate(@import, wasi: false)
    end

    test "prefers the user's own import" do
      own = %{"wasi_snapshot_preview1" => %{"sched_yield" => fn _wasm -> 42 end}}

      for opts <- [[], [wasi: []]] do
        wasm = Beamr.instantiate!(@import, [imports: own] ++ opts)
        assert Beamr.call(wasm, "f", []) == {:ok, [42]}
      end

      wasm = Beamr.instantiate!(@import, wasi: [])
      assert Beamr.call(wasm, "f", []) == {:ok, [0]}
    end

    test "mixes the user's own imports with WASI's in one module", %{compiled: module} do
      test = self()
      exit = fn _wasm, code -> throw({:code, code}) end
      own = %{"wasi_snapshot_preview1" => %{"proc_exit" => exit}}
      wasi = [args: ["wasi", "exit", "9"], stdout: test]
      wasm = Beamr.instantiate!(module, imports: own, wasi: wasi)

      assert {:error, %ImportError{name: "proc_exit", kind: :throw, reason: {:code, 9}}} =
               Beamr.call(wasm, "_start", [])
    end

    test "works where each instance is linked for itself" do
      # An import that is no function, or twice with two types, keeps a module from being resolved.
      source = ~S|(module
        (import "wasi_snapshot_preview1" "sched_yield" (func $f (result i32)))
        (import "env" "g" (func (param i32)))
        (import "env" "g" (func (param i64)))
        (func (export "f") (result i32) (call $f)))|

      imports = %{"env" => %{"g" => fn _wasm, _n -> :ok end}}
      wasm = Beamr.instantiate!(source, wasi: [], imports: imports)
      assert Beamr.call(wasm, "f", []) == {:ok, [0]}
    end

    test "refuses functions that WASI does not have, or has with another type" do
      source = ~S|(module
        (import "wasi_snapshot_preview1" "sched_yield" (func (param i32)))
        (import "wasi_snapshot_preview1" "nope" (func)))|

      assert {:error, %LinkError{imports: [wrong, missing]}} = Beamr.instantiate(source, wasi: [])

      assert %{problem: :type, given: {:function, %{params: [], results: [:i32]}}} = wrong
      assert %{problem: :missing, name: "nope"} = missing
    end

    test "knows all of WASI", %{compiled: module} do
      for {"wasi_snapshot_preview1" = from, name, type} <- Beamr.Module.imports(module) do
        assert WASI.signature(from, name) == type
      end
    end

    test "takes a module without a memory, which no pointer is inside of" do
      source = ~S|(module
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (func (export "f") (result i32) (call $random (i32.const 0) (i32.const 1))))|

      for random <- [nil, 1] do
        wasm = Beamr.instantiate!(source, wasi: [random: random])
        assert {:error, %Trap{reason: :memory_out_of_bounds}} = Beamr.call(wasm, "f", [])
      end
    end
  end

  describe "a reactor" do
    test "is initialized once", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [])
      assert Beamr.call(wasm, "initialized", []) == {:ok, [1]}
    end

    test "whose _initialize traps is no instance" do
      source = ~S|(module (func (export "_initialize") unreachable))|
      assert {:error, %Trap{reason: :unreachable}} = Beamr.instantiate(source, wasi: [])
      assert {:ok, _wasm} = Beamr.instantiate(source)
    end

    test "whose _initialize never ends is timed out" do
      source = ~S|(module (func (export "_initialize") (loop (br 0))))|

      assert {:error, %CallError{reason: :timeout}} =
               Beamr.instantiate(source, wasi: [], timeout: 20)
    end
  end

  describe "output" do
    test "goes to the group leader and to standard error", %{compiled: module} do
      wasm = Beamr.instantiate!(module, wasi: [args: ["wasi", "both"]])
      test = self()

      errors =
        capture_io(:stderr, fn ->
          output = capture_io(fn -> assert Beamr.call(wasm, "_start", []) == {:ok, []} end)
          send(test, {:output, output})
        end)

      assert_received {:output, "to stdout\n"}
      assert errors =~ "to stderr\n"
    end

    test "is text, however it is cut", %{compiled: module} do
      text = String.duplicate("aé€😀", 5_000)
      opts = [args: ["wasi", "utf8"], stdout: :default, timeout: 60_000]
      assert capture_io(fn -> assert WASI.run(module, opts) == {:ok, 0} end) == text
      assert run(module, ["utf8"]) == {0, text}
    end

    test "that can be no text any more is not waited for" do
      source = ~S"""
      (module
        (import "wasi_snapshot_preview1" "fd_write"
          (func $fd_write (param i32 i32 i32 i32) (result i32)))
        (import "env" "look" (func $look))
        (memory (export "memory") 1)
        (data (i32.const 0) "\08\00\00\00\03\00\00\00")
        (func (export "write") (param i32) (result i32)
          (i32.store (i32.const 8) (local.get 0))
          (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12))
          (call $look)))
      """

      # Each begins as a character does; with the first two bytes, the one is out of the range of
      # what can be written so, and the other is not.
      for {bytes, delivered} <- [
            {<<?a, 0xF0, 0x8D>>, "a\u00F0\u008D"},
            {<<?a, 0xF0, 0x9D>>, "a"},
            {<<?a, 0xE0, 0x9F>>, "a\u00E0\u009F"},
            {<<?a, 0xE0, 0xA0>>, "a"},
            {<<?a, 0xED, 0xA0>>, "a\u00ED\u00A0"},
            {<<?a, 0xED, 0x9F>>, "a"},
            {<<?a, 0xF4, 0x90>>, "a\u00F4\u0090"},
            {<<?a, 0xF4, 0x8F>>, "a"}
          ] do
        test = self()

        capture_io(fn ->
          output = Process.group_leader()

          look = fn _wasm ->
            send(test, {:delivered, output |> StringIO.contents() |> elem(1)})
          end

          imports = %{"env" => %{"look" => look}}
          wasm = Beamr.instantiate!(source, wasi: [stdout: :default], imports: imports)
          assert {:ok, [0]} = Beamr.call(wasm, "write", [:binary.decode_unsigned(bytes, :little)])
        end)

        assert_received {:delivered, ^delivered}
      end
    end

    test "that is no text loses nothing", %{compiled: module} do
      bytes = <<:binary.list_to_bin(Enum.to_list(0..255))::binary, 0xC3>>
      assert run(module, ["bytes"]) == {0, bytes}

      opts = [args: ["wasi", "bytes"], stdout: :default]
      output = capture_io(fn -> assert WASI.run(module, opts) == {:ok, 0} end)
      assert :unicode.characters_to_binary(output, :utf8, :latin1) == bytes
    end

    test "goes to a process", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [stdout: self()])
      assert Beamr.call(wasm, "say", [7]) == {:ok, []}
      assert_received {:beamr_stdout, ^wasm, "number 7\n"}
    end

    test "goes to a registered process", %{compiled: module} do
      Process.register(self(), :wasi_test_output)
      wasi = [args: ["wasi", "both"], stdout: nil, stderr: :wasi_test_output]
      wasm = Beamr.instantiate!(module, wasi: wasi)
      assert Beamr.call(wasm, "_start", []) == {:ok, []}
      assert_received {:beamr_stderr, ^wasm, "to stderr\n"}
      refute_received {:beamr_stdout, _, _}
    end

    test "goes nowhere", %{compiled: module} do
      assert capture_io(fn ->
               assert run(module, ["both"], stdout: nil, stderr: nil) == {0, ""}
             end) ==
               ""
    end

    test "comes in the order it was written in, and before the call is over", %{reactor: reactor} do
      test = self()
      wasm = Beamr.instantiate!(reactor, wasi: [stdout: &send(test, {:bytes, &1})])

      for n <- 1..20 do
        assert Beamr.call(wasm, "say", [n]) == {:ok, []}
        bytes = "number #{n}\n"
        assert_received {:bytes, ^bytes}
      end
    end

    test "is kept in a buffer until it is taken", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [stdout: :buffer])
      assert WASI.take_output(wasm, :stdout) == ""
      for n <- 1..2, do: Beamr.call!(wasm, "say", [n])
      assert WASI.take_output(wasm, :stdout) == "number 1\nnumber 2\n"
      assert WASI.take_output(wasm, :stdout) == ""
      assert WASI.take_output(wasm, :stderr) == ""
      Beamr.call!(wasm, "say", [3])
      Beamr.close(wasm)
      assert WASI.take_output(wasm, :stdout) == "number 3\n"
    end

    test "fails as on a full disk when the buffer is full", %{compiled: module} do
      wasi = [args: ["wasi", "blob", "4096"], stdout: {:buffer, 4_096}]
      wasm = Beamr.instantiate!(module, wasi: wasi)
      assert Beamr.call(wasm, "_start", []) == {:ok, []}
      assert {:error, %Exit{code: 101}} = Beamr.call(wasm, "_start", [])
      assert byte_size(WASI.take_output(wasm, :stdout)) == 4_096
      assert Beamr.call(wasm, "_start", []) == {:ok, []}
    end

    test "may be large", %{compiled: module} do
      {0, output} = run(module, ["blob", "20000000"])
      assert byte_size(output) == 20_000_000
    end

    test "of a guest without WASI is empty" do
      assert WASI.take_output(Beamr.instantiate!("(module)"), :stdout) == ""
    end

    test "to a function that raises ends the call", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [stdout: fn _bytes -> raise "full" end])

      assert {:error, %ImportError{module: "wasi_snapshot_preview1", name: "fd_write"} = error} =
               Beamr.call(wasm, "say", [1])

      assert error.reason == %RuntimeError{message: "full"}
      assert {:ok, [1]} = Beamr.call(wasm, "initialized", [])
    end

    test "to a function may use the guest" do
      source = ~S"""
      (module
        (import "wasi_snapshot_preview1" "fd_write"
          (func $fd_write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\01\00\00\00")
        (func (export "write") (param i32) (result i32)
          (i32.store8 (i32.const 16) (local.get 0))
          (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
          (i32.load (i32.const 8))))
      """

      test = self()

      stdout = fn <<byte>> ->
        wasm = Process.get(:wasm)
        send(test, {byte, Beamr.IO.read!(wasm, 16, 1)})
        if byte < ?c, do: {:ok, [1]} = Beamr.call(wasm, "write", [byte + 1])
      end

      wasm = Beamr.instantiate!(source, wasi: [stdout: stdout])
      Process.put(:wasm, wasm)
      assert Beamr.call(wasm, "write", [?a]) == {:ok, [1]}
      for byte <- ~c"abc", do: assert_received({^byte, <<^byte>>})
    end
  end

  describe "input" do
    test "is iodata", %{compiled: module} do
      assert run(module, ["cat"], stdin: ["one\n", [<<255>>, ?a]]) == {0, "one\n\xFFa"}
      assert run(module, ["cat"], stdin: "") == {0, ""}
    end

    test "may be long", %{compiled: module} do
      input = String.duplicate("0123456789", 100_000)
      assert run(module, ["cat"], stdin: input) == {0, input}
    end

    test "comes from a function until that says that it ends", %{compiled: module} do
      for ending <- [:eof, nil, "", []] do
        {:ok, parts} = Agent.start_link(fn -> ["a", ["b", ?c], String.duplicate("d", 5_000)] end)

        next = fn ->
          Agent.get_and_update(parts, fn
            [] -> {ending, []}
            [part | parts] -> {part, parts}
          end)
        end

        assert run(module, ["cat"], stdin: next) == {0, "abc" <> String.duplicate("d", 5_000)}
      end
    end

    test "function runs in the process that made the call", %{compiled: module} do
      test = self()

      stdin = fn ->
        send(test, {:asked, self()})
        :eof
      end

      assert run(module, ["cat"], stdin: stdin) == {0, ""}
      assert_received {:asked, ^test}
    end

    test "may be slow", %{compiled: module} do
      stdin = fn ->
        receive do
          {:input, input} -> input
        end
      end

      wasi = [args: ["wasi", "cat"], stdin: stdin, stdout: :buffer]
      wasm = Beamr.instantiate!(module, wasi: wasi)
      task = Task.async(fn -> Beamr.call(wasm, "_start", [], timeout: :infinity) end)
      await_waiting(task.pid)
      send(task.pid, {:input, "late"})
      send(task.pid, {:input, :eof})
      assert Task.await(task) == {:ok, []}
      assert WASI.take_output(wasm, :stdout) == "late"
    end

    test "that is no iodata ends the call", %{compiled: module} do
      wasm = Beamr.instantiate!(module, wasi: [args: ["wasi", "cat"], stdin: fn -> :what end])

      assert {:error, %ImportError{name: "fd_read", kind: :error, reason: :badarg}} =
               Beamr.call(wasm, "_start", [])
    end

    test "can be waited for", %{compiled: module} do
      assert run(module, ["poll", "1000"], stdin: "x") == {0, "input\n"}
      assert run(module, ["poll", "1000"], stdin: fn -> "x" end) == {0, "input\n"}
      # The end of the input is input too.
      assert run(module, ["poll", "1000"], stdin: fn -> :eof end) == {0, "input\n"}
      assert run(module, ["poll", "1000"]) == {0, "input\n"}
    end
  end

  describe "files" do
    @describetag :tmp_dir

    setup %{tmp_dir: tmp_dir} do
      granted = Path.join(tmp_dir, "granted")
      File.mkdir_p!(Path.join(granted, "sub"))
      File.write!(Path.join(granted, "inside.txt"), "inside")
      File.write!(Path.join(granted, "sub/deep.txt"), "deep")
      File.write!(Path.join(tmp_dir, "outside.txt"), "outside")
      File.ln_s!("../outside.txt", Path.join(granted, "escape"))
      File.ln_s!(Path.expand(Path.join(tmp_dir, "outside.txt")), Path.join(granted, "absolute"))
      File.ln_s!("..", Path.join(granted, "up"))
      File.ln_s!("sub/deep.txt", Path.join(granted, "within"))

      %{
        granted: granted,
        read: [dirs: [{granted, "/data", :read}]],
        write: [dirs: [{granted, "/data", :write}]]
      }
    end

    test "inside are read", %{compiled: module} = context do
      for dirs <- [context.read, context.write] do
        assert run(module, ["cat", "/data/inside.txt"], dirs) == {0, "inside"}
        assert run(module, ["cat", "/data/sub/deep.txt"], dirs) == {0, "deep"}
        assert run(module, ["cat", "/data/sub/../inside.txt"], dirs) == {0, "inside"}
        assert run(module, ["cat", "/data/within"], dirs) == {0, "deep"}
      end
    end

    test "inside are listed", %{compiled: module} = context do
      {0, names} = run(module, ["list", "/data"], context.read)

      assert names |> String.split("\n", trim: true) |> Enum.sort() ==
               ~w(absolute escape inside.txt sub up within)
    end

    test "outside are out of reach", %{compiled: module, tmp_dir: tmp_dir} = context do
      outside = Path.expand(Path.join(tmp_dir, "outside.txt"))

      for dirs <- [context.read, context.write],
          path <- [
            "/data/../outside.txt",
            "/data/sub/../../outside.txt",
            "/data/escape",
            "/data/absolute",
            "/data/up/outside.txt",
            "/data/#{outside}",
            outside,
            "/outside.txt",
            "../outside.txt",
            "outside.txt",
            "/etc/passwd",
            "/data/../../../../../../../../etc/passwd"
          ],
          action <- ["cat", "overwrite", "remove", "truncate"] do
        # Removing a link removes the link.
        unless action == "remove" and path in ["/data/escape", "/data/absolute"] do
          assert {^path, ^action, {1, _}} = {path, action, run(module, [action, path, "x"], dirs)}
        end
      end

      assert File.read!(outside) == "outside"
    end

    test "outside are not reached by links that the guest makes", %{compiled: module} = context do
      run(module, ["symlink", "../outside.txt", "/data/link"], context.write)
      assert {1, _} = run(module, ["cat", "/data/link"], context.write)
      assert {1, _} = run(module, ["symlink", "/etc/passwd", "/data/passwd"], context.write)
      assert {1, _} = run(module, ["rename", "/data/inside.txt", "/data/../x"], context.write)
      assert {1, _} = run(module, ["create", "/data/../x", "x"], context.write)
      refute File.exists?(Path.join(context.tmp_dir, "x"))
    end

    test "are written where that is granted", %{compiled: module, granted: granted} = context do
      read = fn name -> File.read!(Path.join(granted, name)) end
      assert run(module, ["create", "/data/new.txt", "new"], context.write) == {0, "done\n"}
      assert read.("new.txt") == "new"
      assert run(module, ["append", "/data/new.txt", "er"], context.write) == {0, "done\n"}
      assert read.("new.txt") == "newer"
      assert run(module, ["overwrite", "/data/new.txt", "N"], context.write) == {0, "done\n"}
      assert read.("new.txt") == "Newer"
      assert run(module, ["mkdir", "/data/dir"], context.write) == {0, "done\n"}

      assert run(module, ["rename", "/data/new.txt", "/data/dir/n"], context.write) ==
               {0, "done\n"}

      assert read.("dir/n") == "Newer"
      assert run(module, ["remove", "/data/dir/n"], context.write) == {0, "done\n"}
      assert File.ls!(Path.join(granted, "dir")) == []
    end

    test "are not changed where only reading is granted", %{compiled: module} = context do
      before = File.ls!(context.granted)

      for args <- [
            ["create", "/data/new.txt", "x"],
            ["create", "/data/inside.txt", "x"],
            ["append", "/data/inside.txt", "x"],
            ["overwrite", "/data/inside.txt", "x"],
            ["truncate", "/data/inside.txt"],
            ["remove", "/data/inside.txt"],
            ["mkdir", "/data/dir"],
            ["rename", "/data/inside.txt", "/data/moved.txt"],
            ["symlink", "inside.txt", "/data/link"]
          ] do
        assert {^args, {1, _}} = {args, run(module, args, context.read)}
      end

      assert File.ls!(context.granted) == before
      assert File.read!(Path.join(context.granted, "inside.txt")) == "inside"
    end

    test "of several directories are apart", %{compiled: module, granted: granted} do
      dirs = [{granted, "/read", :read}, {granted, "/write", :write}, {granted, ".", :read}]
      assert {1, _} = run(module, ["create", "/read/a", "a"], dirs: dirs)
      assert {0, _} = run(module, ["create", "/write/a", "a"], dirs: dirs)
      assert run(module, ["cat", "/read/a"], dirs: dirs) == {0, "a"}
      assert run(module, ["cat", "a"], dirs: dirs) == {0, "a"}
    end

    test "need a directory that is there", %{compiled: module, granted: granted} do
      for {path, reason} <- [
            {"no/such/dir", :enoent},
            {Path.join(granted, "inside.txt"), :enotdir}
          ] do
        wasi = [dirs: [{path, "/", :read}]]

        assert {:error, %WASIError{reason: ^reason, path: ^path} = error} =
                 Beamr.instantiate(module, wasi: wasi)

        assert Exception.message(error) =~ path
        assert {:error, %WASIError{}} = WASI.run(module, wasi)
      end
    end

    test "that hang hold up nothing but their guest",
         %{compiled: module, granted: granted} = context do
      # A pipe is opened when its other end is.
      pipe = Path.join(granted, "pipe")
      {"", 0} = System.cmd("mkfifo", [pipe])
      wasi = [args: ["wasi", "cat", "/data/pipe"]] ++ context.read
      wasm = Beamr.instantiate!(module, wasi: wasi)

      {milliseconds, result} = timed(fn -> Beamr.call(wasm, "_start", [], timeout: 20) end)
      assert {:error, %CallError{reason: :timeout}} = result
      assert milliseconds < 2_000

      task = Task.async(fn -> Beamr.call(wasm, "_start", [], timeout: :infinity) end)
      await_asleep(task.pid)
      assert run(module, ["cat", "/data/inside.txt"], context.read) == {0, "inside"}
      Beamr.interrupt(wasm)
      assert {:error, %CallError{reason: :interrupted}} = Task.await(task)

      # Lets go of the threads that wait.
      {:ok, both_ends} = File.open(pipe, [:read, :write, :raw])
      File.close(both_ends)
    end

    test "of some size go through whole", %{compiled: module, granted: granted} = context do
      bytes = :crypto.strong_rand_bytes(3_000_000)
      File.write!(Path.join(granted, "large"), bytes)
      assert run(module, ["cat", "/data/large"], context.read) == {0, bytes}
    end
  end

  describe "a guest that sleeps" do
    test "sleeps as long as it says", %{compiled: module} do
      {milliseconds, result} = timed(fn -> run(module, ["sleep", "50"]) end)
      assert result == {0, ""}
      assert milliseconds >= 50
    end

    test "is woken when its time is over, and leaves no message", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [])
      for _ <- 1..20, do: assert(Beamr.call(wasm, "sleep", [1]) == {:ok, [0]})
      assert Process.info(self(), :messages) == {:messages, []}
    end

    test "is timed out at once", %{compiled: module} do
      wasm = Beamr.instantiate!(module, wasi: [args: ["wasi", "sleep", "10000"]])
      {milliseconds, result} = timed(fn -> Beamr.call(wasm, "_start", [], timeout: 30) end)
      assert {:error, %CallError{reason: :timeout}} = result
      assert milliseconds in 30..2_000
      assert Process.info(self(), :messages) == {:messages, []}
    end

    test "and is timed out just when it wakes leaves no message", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [])

      for _ <- 1..100 do
        result = Beamr.call(wasm, "sleep", [5], timeout: 5)

        assert match?({:ok, [0]}, result) or
                 match?({:error, %CallError{reason: :timeout}}, result)
      end

      assert Process.info(self(), :messages) == {:messages, []}
      assert Beamr.call(wasm, "initialized", []) == {:ok, [1]}
    end

    test "is interrupted at once", %{compiled: module} do
      {wasm, task} = start_sleep(module)
      Beamr.interrupt(wasm)
      assert {milliseconds, {:error, %CallError{reason: :interrupted}}} = Task.await(task)
      assert milliseconds < 5_000
    end

    test "is closed at once", %{compiled: module} do
      {wasm, task} = start_sleep(module)
      Beamr.close(wasm)
      assert {milliseconds, {:error, %CallError{reason: :closed}}} = Task.await(task)
      assert milliseconds < 5_000
    end

    test "is killed at once, and others are let in", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [])
      pid = spawn(fn -> Beamr.call(wasm, "sleep", [10_000], timeout: :infinity) end)
      await_asleep(pid)
      next = Task.async(fn -> timed(fn -> Beamr.call(wasm, "initialized", []) end) end)
      await_waiting(next.pid)
      Process.exit(pid, :kill)
      assert {milliseconds, {:ok, [1]}} = Task.await(next)
      assert milliseconds < 4_000
    end

    test "has memory that is read and written meanwhile", %{compiled: module} do
      {wasm, task} = start_sleep(module)
      assert Beamr.IO.write(wasm, "hello", 16) == :ok
      assert Beamr.IO.read(wasm, 16, 5) == {:ok, "hello"}
      Beamr.interrupt(wasm)
      Task.await(task)
    end

    test "in a nested call has no more time than the outer one", %{reactor: reactor} do
      source = ~S|(module (import "env" "nest" (func $nest)) (func (export "f") (call $nest)))|
      sleeper = Beamr.instantiate!(reactor, wasi: [])
      test = self()
      nest = fn _wasm -> send(test, Beamr.call(sleeper, "sleep", [10_000])) end
      outer = Beamr.instantiate!(source, imports: %{"env" => %{"nest" => nest}})
      assert {:error, %CallError{reason: :timeout}} = Beamr.call(outer, "f", [], timeout: 30)
      assert_received {:error, %CallError{reason: :timeout}}
    end

    test "inside its own import is woken too" do
      source = ~S"""
      (module
        (import "env" "nest" (func $nest (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff"
          (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "outer") (result i32) (call $nest))
        (func (export "sleep") (param i64) (result i32)
          (i32.store (i32.const 16) (i32.const 1))
          (i64.store (i32.const 24) (local.get 0))
          (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
      """

      nest = fn wasm ->
        {:ok, [0]} = Beamr.call(wasm, "sleep", [1_000_000])

        {:error, %CallError{reason: :timeout}} =
          Beamr.call(wasm, "sleep", [10_000_000_000], timeout: 10)

        7
      end

      wasm = Beamr.instantiate!(source, wasi: [], imports: %{"env" => %{"nest" => nest}})
      assert Beamr.call(wasm, "outer", []) == {:ok, [7]}
    end

    test "may be ended in any way at any time", %{reactor: reactor} do
      for_random_cases(10, fn ->
        wasm = Beamr.instantiate!(reactor, wasi: [])

        callers =
          for _ <- 1..6 do
            [sleep, timeout] = for _ <- 1..2, do: :rand.uniform(12)

            spawn_monitor(fn ->
              for _ <- 1..10, do: Beamr.call(wasm, "sleep", [sleep], timeout: timeout)
              {:messages, []} = Process.info(self(), :messages)
            end)
          end

        for {pid, _monitor} <- callers, :rand.uniform(3) == 1, do: Process.exit(pid, :kill)
        for _ <- 1..20, do: Beamr.interrupt(wasm)
        if :rand.uniform(2) == 1, do: Beamr.close(wasm)

        for {pid, monitor} <- callers do
          assert_receive {:DOWN, ^monitor, :process, ^pid, reason}, 30_000
          assert reason in [:normal, :killed]
        end

        case Beamr.call(wasm, "initialized", []) do
          {:ok, [1]} -> :ok
          {:error, %CallError{reason: :closed}} -> :ok
        end
      end)
    end

    test "waits on each kind of scheduler", %{reactor: reactor} do
      wasm = Beamr.instantiate!(reactor, wasi: [])

      for scheduler <- [:auto, :normal, :dirty] do
        assert Beamr.call(wasm, "sleep", [2], scheduler: scheduler) == {:ok, [0]}
      end
    end
  end

  describe "fixed" do
    test "clocks stand still", %{compiled: module} do
      assert run(module, ["time"], clock: 1_234_567_890_123_456_789) ==
               {0, "1234567890123456789 0\n"}

      assert run(module, ["time"], clock: ~U[2024-02-29 12:00:00Z]) ==
               {0, "1709208000000000000 0\n"}
    end

    test "clocks move with each reading if told so", %{compiled: module} do
      assert run(module, ["time"], clock: {1_000, 10}) == {0, "1000 10\n"}
    end

    test "randomness depends on the seed alone", %{compiled: module} do
      assert {0, one} = run(module, ["random"], random: 1)
      assert {0, ^one} = run(module, ["random"], random: 1)
      assert {0, two} = run(module, ["random"], random: 2)
      assert one != two
      # The reference implementation's first number for seed 1.
      <<number::little-64>> = one |> String.trim() |> Base.decode16!(case: :lower)
      assert number == 0x910A2DEC89025CC1
    end

    test "nothing is unless told so", %{compiled: module} do
      assert run(module, ["random"]) != run(module, ["random"])
      {0, time} = run(module, ["time"])
      [wall, _monotonic] = time |> String.split() |> Enum.map(&String.to_integer/1)
      assert_in_delta wall, System.os_time(:nanosecond), 60_000_000_000
    end
  end

  describe "a server" do
    test "takes the option", %{reactor: reactor} do
      {:ok, server} = start_supervised({Beamr.Server, module: reactor, wasi: [stdout: :buffer]})
      assert Beamr.call(server, "say", [1]) == {:ok, []}
      assert WASI.take_output(server, :stdout) == "number 1\n"
    end

    test "prints where it was told to", %{reactor: reactor} do
      test = self()
      opts = [module: reactor, wasi: [stdout: &send(test, {self(), &1})]]
      {:ok, server} = start_supervised({Beamr.Server, opts})
      assert Beamr.call(server, "say", [2]) == {:ok, []}
      assert_received {^server, "number 2\n"}
    end

    test "goes on after an exit", %{compiled: module} do
      opts = [module: module, wasi: [args: ["wasi", "exit", "3"]]]
      {:ok, server} = start_supervised({Beamr.Server, opts})
      assert {:error, %Exit{code: 3}} = Beamr.call(server, "_start", [])
      assert {:error, %Exit{code: 3}} = Beamr.call(server, "_start", [])
    end

    test "has its own imports beside WASI's" do
      source = """
      (module
        (import "env" "next" (func $next (result i32)))
        (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
        (func (export "f") (result i32) (i32.add (call $next) (call $yield))))
      """

      {:ok, server} = start_supervised({__MODULE__.Counter, module: source, wasi: [], arg: 5})
      assert Beamr.call(server, "f", []) == {:ok, [5]}
      assert Beamr.call(server, "f", []) == {:ok, [6]}
    end

    test "stops sleeping when its client dies", %{reactor: reactor} do
      {:ok, server} = start_supervised({Beamr.Server, module: reactor, wasi: []})
      client = spawn(fn -> Beamr.call(server, "sleep", [10_000], timeout: :infinity) end)
      await_asleep(server)
      kill(client)
      {milliseconds, result} = timed(fn -> Beamr.call(server, "initialized", []) end)
      assert result == {:ok, [1]}
      assert milliseconds < 4_000
    end

    test "is refused wrong options", %{reactor: reactor} do
      assert_raise ArgumentError, ~r/:args/, fn ->
        Beamr.Server.start_link(module: reactor, wasi: [args: [1]])
      end
    end

    test "whose directory is missing does not start", %{reactor: reactor} do
      opts = [module: reactor, wasi: [dirs: [{"no/such", "/", :read}]]]
      assert {:error, %WASIError{reason: :enoent}} = Beamr.Server.start_link(opts)
    end
  end

  test "Erlang gives maps and proplists", %{compiled: module} do
    wasi = %{args: ["wasi", "env"], env: [{"A", "1"}], stdout: self(), stdin: :undefined}
    {:ok, wasm} = :beamr.instantiate(module, %{wasi: wasi})
    assert :beamr.call(wasm, "_start", []) == {:ok, []}
    assert_received {:beamr_stdout, ^wasm, "A=1\n"}
    assert {:ok, 3} = :beamr.run(module, args: ["wasi", "exit", "3"])
  end

  test "options of the wrong kind are refused" do
    for wrong <- [
          1,
          :yes,
          "args",
          [args: "a"],
          [args: ["a\0b"]],
          [args: [<<255>>]],
          [env: ["A"]],
          [env: [{"A", 1}]],
          [env: %{a: "1"}],
          [dirs: ["/"]],
          [dirs: [{"/", "/"}]],
          [dirs: [{"/", "/", :execute}]],
          [stdin: 1],
          [stdin: [:a]],
          [stdin: fn _ -> "" end],
          [stdout: fn -> "" end],
          [stdout: true],
          [stdout: {:buffer, 0}],
          [stderr: "file"],
          [clock: -1],
          [clock: {0, -1}],
          [clock: ~U[1969-01-01 00:00:00Z]],
          [random: -1],
          [random: 1.5],
          [tty: nil],
          [nope: 1]
        ] do
      assert_raise ArgumentError, fn -> Beamr.instantiate("(module)", wasi: wrong) end
    end
  end
end

defmodule Beamr.WASIThreadsTest do
  # Threads are the node's: those of other tests would be counted.
  use Beamr.Case, async: false

  @sleepers 1_000

  # Linux counts them.
  if not File.dir?("/proc/self/task"), do: @moduletag(:skip)

  defp threads, do: length(File.ls!("/proc/#{System.pid()}/task"))

  test "sleeping guests need no threads, and are all woken" do
    reactor = Beamr.compile_file!("test/guests/reactor.wasm")
    # Whatever is started once for the node.
    {:ok, [0]} = Beamr.call(Beamr.instantiate!(reactor, wasi: []), "sleep", [1])

    before = threads()
    test = self()

    sleepers =
      for _ <- 1..@sleepers do
        spawn_monitor(fn ->
          wasm = Beamr.instantiate!(reactor, wasi: [])
          send(test, {:asleep, wasm})

          {:error, %{reason: :interrupted}} =
            Beamr.call(wasm, "sleep", [60_000], timeout: 120_000)
        end)
      end

    guests = for _ <- sleepers, do: receive(do: ({:asleep, wasm} -> wasm))
    for {pid, _monitor} <- sleepers, do: await_asleep(pid)
    assert threads() <= before

    Enum.each(guests, &Beamr.interrupt/1)

    for {pid, monitor} <- sleepers do
      assert_receive {:DOWN, ^monitor, :process, ^pid, :normal}, 10_000
    end
  end

  defp await_asleep(pid) do
    eventually(fn ->
      Process.info(pid, :current_function) ==
        {:current_function, {Beamr.Instance, :await_wake, 3}}
    end)
  end
end
