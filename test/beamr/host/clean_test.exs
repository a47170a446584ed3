defmodule Beamr.Host.CleanTest do
  use Beamr.CleanCase

  import ExUnit.CaptureIO

  alias Beamr.{CallError, LinkError}
  alias Beamr.Host.Clean

  doctest Beamr.Host.Clean

  @table File.read!(Path.join(__DIR__, "clean/functions.txt"))
         |> String.split("\n", trim: true)
         |> Enum.map(&String.split/1)

  defp signature(text) do
    [params, results] = String.split(text, "->")

    list =
      &for(type <- String.split(&1, ~r/[(),]/, trim: true), do: String.to_existing_atom(type))

    {:function, %{params: list.(params), results: list.(results)}}
  end

  defp wat({:function, %{params: params, results: results}}) do
    "(param #{Enum.join(params, " ")}) (result #{Enum.join(results, " ")})"
  end

  @args %{
    Clean.Files => [root: "."],
    Clean.Database => {__MODULE__, nil},
    Clean.HTTPServer => &__MODULE__.tell/1
  }

  def tell(_what), do: :ok

  for [group, name | signatures] <- @table, signature <- signatures do
    test "#{name} is there as #{signature}, in #{group}" do
      host = Module.concat(Clean, unquote(group))
      module = if host == Clean.MemoryRuntime, do: "memory_runtime", else: "env"

      import =
        ~s|(module (import "#{module}" "#{unquote(name)}" (func #{wat(signature(unquote(signature)))})))|

      assert {:ok, _wasm} = Beamr.instantiate(import, hosts: [{host, @args[host]}])

      # And it is refused without its group, which is named.
      others = for other <- Clean.groups(), other != host, do: {other, @args[other]}
      assert {:error, %LinkError{imports: [problem]}} = Beamr.instantiate(import, hosts: others)
      assert %{problem: :missing, name: unquote(name), host: ^host} = problem
    end
  end

  test "has no function that the table does not have" do
    listed = MapSet.new(@table, fn [_group, name | _] -> name end)

    for host <- Clean.groups(),
        {_module, functions} <- elem(host.__wasm__(), 1),
        {name, _} <- functions do
      assert name in listed
    end
  end

  @hello """
  (module
    (import "env" "printl" (func $printl (param i32 i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "_startmainstart")
    (func $say (param i32 i32) (call $printl (local.get 0) (local.get 1)))
    ENTRIES)
  """

  @entries %{"_start" => {8, 6}, "main" => {14, 4}, "start" => {18, 5}}

  defp program(entries) do
    functions =
      for name <- entries do
        {pointer, length} = @entries[name]
        ~s|(func (export "#{name}") (call $say (i32.const #{pointer}) (i32.const #{length})))|
      end

    String.replace(@hello, "ENTRIES", Enum.join(functions))
  end

  describe "run" do
    for {entries, first} <- [
          {["_start"], "_start"},
          {["main"], "main"},
          {["start"], "start"},
          {["start", "main"], "main"},
          {["start", "main", "_start"], "_start"}
        ] do
      test "calls #{first} of #{inspect(entries)}" do
        run = fn -> assert Clean.run(program(unquote(entries))) == {:ok, []} end
        assert capture_io(run) == unquote(first) <> "\n"
      end
    end

    test "fails without an entry point" do
      assert {:error, %CallError{reason: :unknown_function, function: "_start"}} =
               Clean.run(~S|(module (global (export "main") i32 (i32.const 1)))|)
    end

    test "takes modules, bytes and files" do
      path = Path.join(System.tmp_dir!(), "beamr-clean-#{System.unique_integer([:positive])}.wat")
      File.write!(path, program(["main"]))
      on_exit(fn -> File.rm!(path) end)

      for program <- [Beamr.compile!(program(["main"])), path] do
        assert capture_io(fn -> assert Clean.run(program) == {:ok, []} end) == "main\n"
      end

      assert {:error, %Beamr.CompileError{reason: {:file, :enoent}}} = Clean.run("no/such.wasm")
    end

    test "has the user's own imports before Clean's" do
      test = self()

      imports = %{
        "env" => %{"printl" => fn _wasm, pointer, length -> send(test, {pointer, length}) end}
      }

      assert Clean.run(program(["main"]), imports: imports) == {:ok, []}
      assert_received {14, 4}
    end

    test "refuses what was not granted, with all the names" do
      source = """
      (module
        (import "env" "printl" (func (param i32 i32)))
        (import "env" "file_read" (func (param i32 i32) (result i32)))
        (import "env" "_db_begin" (func (result i32)))
        (import "env" "unknown" (func))
        (func (export "start")))
      """

      assert {:error, %LinkError{imports: problems} = error} = Clean.run(source)

      assert for(problem <- problems, do: {problem.name, problem[:host]}) == [
               {"file_read", Clean.Files},
               {"_db_begin", Clean.Database},
               {"unknown", nil}
             ]

      assert Exception.message(error) =~ "it belongs to Beamr.Host.Clean.Database"
      assert_raise LinkError, fn -> Clean.run!(source) end
    end

    test "grants groups with their arguments" do
      source = """
      (module
        (import "env" "file_exists" (func $exists (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 8) "mix.exs")
        (func (export "main") (result i32) (call $exists (i32.const 8) (i32.const 7))))
      """

      assert Clean.run(source, grant: [files: [root: "."]]) == {:ok, [1]}
      assert Clean.run(source, grant: [:math, files: [root: "test"]]) == {:ok, [0]}
    end

    test "knows its groups" do
      assert_raise ArgumentError, ~r/no group :disk/, fn ->
        Clean.run("(module)", grant: [:disk])
      end

      for group <- [{:math}, {:files, [], []}, "math"] do
        assert_raise ArgumentError, ~r/no group/, fn -> Clean.hosts([group]) end
      end
    end

    test "answers traps, and ends in time" do
      assert {:error, %Beamr.Trap{reason: :unreachable}} =
               Clean.run(~S|(module (func (export "main") unreachable))|)

      assert {:error, %CallError{reason: :timeout}} =
               Clean.run(~S|(module (func (export "main") (loop (br 0))))|, timeout: 50)
    end

    test "has the allocator chosen for all groups" do
      source = """
      (module
        (import "env" "int_to_string" (func $text (param i64) (result i32)))
        (import "memory_runtime" "mem_alloc" (func $alloc (param i32 i32) (result i32)))
        (memory (export "memory") 4)
        (func (export "main") (result i32 i32)
          (call $text (i64.const 12345)) (call $alloc (i32.const 8) (i32.const 8))))
      """

      assert Clean.run(source) == {:ok, [65_536, 65_552]}
      assert Clean.run(source, allocator: {:base, 1024}) == {:ok, [1024, 1040]}
    end
  end

  test "a program in the pointer-pair form" do
    source = """
    (module
      (import "env" "print" (func $print (param i32 i32)))
      (import "env" "string_concat" (func $concat (param i32 i32 i32 i32) (result i32)))
      (import "env" "float_to_string" (func $text (param f64) (result i32)))
      (import "env" "math_sqrt" (func $sqrt (param f64) (result f64)))
      (memory (export "memory") 2)
      (data (i32.const 16) "sqrt(2) = ")
      (func (export "start") (local $text i32)
        (local.set $text (call $text (call $sqrt (f64.const 2))))
        (local.set $text (call $concat (i32.const 16) (i32.const 10)
          (i32.add (local.get $text) (i32.const 4)) (i32.load (local.get $text))))
        (call $print (i32.add (local.get $text) (i32.const 4)) (i32.load (local.get $text)))))
    """

    assert capture_io(fn -> Clean.run!(source) end) == "sqrt(2) = 1.4142135623730951"
  end

  test "a program in the length-prefixed form" do
    source = """
    (module
      (import "env" "printl" (func $print (param i32)))
      (import "env" "string.concat" (func $concat (param i32 i32) (result i32)))
      (import "env" "string.toUpperCase" (func $upper (param i32) (result i32)))
      (import "env" "integer.toString" (func $text (param i32) (result i32)))
      (memory (export "memory") 2)
      (data (i32.const 16) "\\04\\00\\00\\00n = ")
      (func (export "_start")
        (call $print (call $concat (call $upper (i32.const 16)) (call $text (i32.const 7))))
        (call $print (i32.const 0))))
    """

    assert capture_io(fn -> Clean.run!(source) end) == "N = 7\n\n"
  end

  test "a Clean program in a supervised server, beside imports of the user's" do
    source = """
    (module
      (import "env" "string_to_upper" (func $upper (param i32 i32) (result i32)))
      (import "env" "seen" (func $seen (param i32)))
      (memory (export "memory") 2)
      (data (i32.const 16) "loud")
      (func (export "shout") (result i32)
        (call $seen (i32.const 1))
        (call $upper (i32.const 16) (i32.const 4))))
    """

    test = self()

    server =
      start_supervised!(
        {Beamr.Server,
         module: source,
         hosts: Clean.hosts(),
         imports: %{"env" => %{"seen" => fn _wasm, n -> send(test, {:seen, n}) end}}}
      )

    {:ok, [pointer]} = Beamr.call(server, "shout", [])
    assert Clean.read_string(server, pointer) == {:ok, "LOUD"}
    assert_received {:seen, 1}
  end

  test "read_string fails outside the memory" do
    wasm =
      Beamr.instantiate!(
        ~S|(module (memory (export "memory") 1) (data (i32.const 8) "\FF\FF\00\00"))|
      )

    assert {:error, %Beamr.MemoryError{reason: :out_of_bounds}} = Clean.read_string(wasm, 65_534)
    assert {:error, %Beamr.MemoryError{offset: 12, length: 65_535}} = Clean.read_string(wasm, 8)
    assert_raise Beamr.MemoryError, fn -> Clean.read_string!(wasm, 8) end
    assert_raise FunctionClauseError, fn -> Clean.read_string(wasm, -1) end
  end
end
