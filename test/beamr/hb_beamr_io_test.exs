defmodule Beamr.HbBeamrIOTest do
  # The defects of hb_beamr and hb_beamr_io, whose interface Beamr.IO follows: one test for each.
  use Beamr.Case, async: true

  alias Beamr.{CallError, ImportError, MemoryError}

  @page 65_536

  defp importing(import) do
    Beamr.instantiate!(
      """
      (module
        (import "env" "i" (func $i (param i32) (result i32)))
        (memory (export "memory") 1)
        #{bump_malloc()}
        (func (export "f") (param i32) (result i32) (call $i (local.get 0)))
        (func (export "ok") (result i32) (i32.const 7)))
      """,
      imports: %{"env" => %{"i" => import}}
    )
  end

  defp numbers do
    Beamr.instantiate!("""
    (module
      (func (export "i32") (param i32) (result i32) (local.get 0))
      (func (export "i64") (param i64) (result i64) (local.get 0))
      (func (export "f32") (param f32) (result f32) (local.get 0))
      (func (export "f64") (param f64) (result f64) (local.get 0))
      (func (export "div") (param f64 f64) (result f64) (f64.div (local.get 0) (local.get 1)))
      (func (export "both") (param i32 f64)))
    """)
  end

  defp memory, do: Beamr.instantiate!(~S|(module (memory (export "memory") 1))|)

  test "negative or huge offset or size" do
    wasm = memory()

    for {offset, length} <- [{-1, 1}, {0, -1}, {-(2 ** 63), 1}, {-(10 ** 30), 1}] do
      assert_raise FunctionClauseError, fn -> Beamr.IO.read(wasm, offset, length) end
    end

    assert_raise FunctionClauseError, fn -> Beamr.IO.write(wasm, -1, "x") end

    for huge <- [2 ** 31, 2 ** 32, 2 ** 40, 2 ** 63, 2 ** 64, 10 ** 30] do
      for result <- [
            Beamr.IO.read(wasm, huge, 1),
            Beamr.IO.read(wasm, 0, huge),
            Beamr.IO.read(wasm, huge, huge),
            Beamr.IO.write(wasm, huge, "x"),
            Beamr.IO.read_string(wasm, huge)
          ] do
        assert {:error, %MemoryError{reason: :out_of_bounds}} = result
      end
    end
  end

  test "call with too few, too many or ill-typed arguments" do
    wasm = numbers()

    for args <- [[], [1], [1, 2.0, 3]] do
      given = length(args)

      assert {:error, %CallError{reason: :arity, wanted: 2, given: ^given}} =
               Beamr.call(wasm, "both", args)
    end

    for {args, position, type} <- [
          {[:a, 2.0], 1, :i32},
          {[1.0, 2.0], 1, :i32},
          {[2 ** 32, 2.0], 1, :i32},
          {["1", 2.0], 1, :i32},
          {[1, "2"], 2, :f64},
          {[1, nil], 2, :f64}
        ] do
      assert {:error, %CallError{reason: :argument, position: ^position, wanted: ^type}} =
               Beamr.call(wasm, "both", args)
    end

    assert Beamr.call(wasm, "both", [1, 2.0]) == {:ok, []}
  end

  test "function name of 300 bytes" do
    name = String.duplicate("f", 300)

    assert {:error, %CallError{reason: :unknown_function, function: ^name}} =
             Beamr.call(numbers(), name, [])
  end

  test "import function returns the wrong number or type of values" do
    for bad <- [nil, :ok, [], [1], [1, 2], 1.0, "1", 2 ** 32, {:ok, 1}] do
      wasm = importing(fn _wasm, _n -> bad end)

      assert {:error, %ImportError{module: "env", name: "i", kind: :result, given: ^bad}} =
               Beamr.call(wasm, "f", [1])

      assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
    end
  end

  test "import function raises, throws or exits" do
    for {kind, reason, import} <- [
          {:error, %RuntimeError{message: "no"}, fn _wasm, _n -> raise "no" end},
          {:throw, :no, fn _wasm, _n -> throw(:no) end},
          {:exit, :no, fn _wasm, _n -> exit(:no) end}
        ] do
      wasm = importing(import)

      assert {:error, %ImportError{kind: ^kind, reason: ^reason, stacktrace: [frame | _]}} =
               Beamr.call(wasm, "f", [1])

      assert {__MODULE__, _function, _arity, _location} = frame
      assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
    end
  end

  test "guest returns NaN or infinity" do
    wasm = numbers()
    assert Beamr.call(wasm, "div", [1, 0]) == {:ok, [:infinity]}
    assert Beamr.call(wasm, "div", [-1, 0]) == {:ok, [:neg_infinity]}
    assert Beamr.call(wasm, "div", [0, 0]) == {:ok, [:nan]}
  end

  test "i32/i64 argument >= 2^31, f32 values, integer for f64" do
    wasm = numbers()
    assert Beamr.call(wasm, "i32", [2 ** 31]) == {:ok, [-(2 ** 31)]}
    assert Beamr.call(wasm, "i32", [2 ** 32 - 1]) == {:ok, [-1]}
    assert Beamr.call(wasm, "i64", [2 ** 31]) == {:ok, [2 ** 31]}
    assert Beamr.call(wasm, "i64", [2 ** 63 - 1]) == {:ok, [2 ** 63 - 1]}
    assert Beamr.call(wasm, "i64", [2 ** 64 - 1]) == {:ok, [-1]}
    assert Beamr.call(wasm, "f32", [1.5]) == {:ok, [1.5]}
    assert Beamr.call(wasm, "f32", [-0.1]) == {:ok, [-0.10000000149011612]}
    assert Beamr.call(wasm, "f64", [3]) == {:ok, [3.0]}
  end

  test "calling an export (malloc!) inside an import" do
    wasm =
      importing(fn
        wasm, 0 -> Beamr.IO.write_string!(wasm, "from the deep")
        wasm, n -> wasm |> Beamr.call!("f", [n - 1]) |> hd()
      end)

    for depth <- [0, 1, 2, 50] do
      assert {:ok, [pointer]} = Beamr.call(wasm, "f", [depth])
      assert Beamr.IO.read_string(wasm, pointer) == {:ok, "from the deep"}
    end
  end

  test "two processes use one guest" do
    # Each import gives way, so that the calls meet in every way.
    wasm =
      importing(fn _wasm, n ->
        :erlang.yield()
        n + 1
      end)

    tasks =
      for first <- [0, 10_000] do
        Task.async(fn ->
          for n <- first..(first + 2_000),
              do: assert(Beamr.call(wasm, "f", [n]) == {:ok, [n + 1]})

          assert {:messages, []} = Process.info(self(), :messages)
        end)
      end

    Task.await_many(tasks, 60_000)
  end

  test "any operation on a dead guest" do
    wasm = importing(fn _wasm, n -> n end)
    :ok = Beamr.close(wasm)

    for {function, args} <- [size: [], read: [0, 1], write: ["x", 0], read_string: [0]] do
      assert {:error, %MemoryError{reason: :closed}} = apply(Beamr.IO, function, [wasm | args])
    end

    for {function, args} <- [malloc: [1], free: [1], write_string: ["x"]] do
      assert {:error, %CallError{reason: :closed}} = apply(Beamr.IO, function, [wasm | args])
    end

    assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, "f", [1])
    assert Beamr.close(wasm) == :ok
  end

  test "stop or kill during a call" do
    wasm = Beamr.instantiate!(endless())

    task = start_endless(wasm)
    kill(task.pid)
    assert Beamr.call(wasm, "f", []) == {:ok, [7]}

    :ok = Beamr.IO.write(wasm, 0, <<0::64>>)
    task = start_endless(wasm)
    :ok = Beamr.close(wasm)
    assert {:error, %CallError{reason: :closed}} = Task.await(task)
  end

  test "endless loop in a guest" do
    for _ <- 1..(System.schedulers_online() + 1), do: start_endless(Beamr.instantiate!(endless()))
    other = Beamr.instantiate!(endless())

    for _ <- 1..20 do
      assert Beamr.call(other, "f", []) == {:ok, [7]}
      assert :ok = IO.write(:stderr, "")
      assert Task.await(Task.async(fn -> :here end)) == :here
    end
  end

  test "string whose chunk crosses the end of memory" do
    wasm = memory()
    :ok = Beamr.IO.write(wasm, @page - 4, "end\0")

    for chunk <- [1, 2, 3, 4, 5, 7, 8, 9, 4096, 2 ** 40] do
      assert Beamr.IO.read_string(wasm, @page - 4, chunk) == {:ok, "end"}
    end
  end

  test "string with no NUL before the end of memory" do
    wasm = memory()
    :ok = Beamr.IO.write(wasm, @page - 7, "the end")

    for chunk <- [1, 6, 7, 8, 4096] do
      assert {:error, %MemoryError{reason: :unterminated, offset: 65_529, size: 65_536}} =
               Beamr.IO.read_string(wasm, @page - 7, chunk)
    end
  end

  test "malloc/free not exported" do
    wasm = memory()

    for {name, result} <- [
          {"malloc", Beamr.IO.malloc(wasm, 1)},
          {"malloc", Beamr.IO.write_string(wasm, "x")},
          {"free", Beamr.IO.free(wasm, 1)}
        ] do
      assert {:error, %CallError{reason: :unknown_function, function: ^name}} = result
    end
  end

  test "snapshot of a grown memory into a fresh instance" do
    module =
      Beamr.compile!("""
      (module (memory (export "memory") 1)
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))
      """)

    [old, fresh] = for _ <- 1..2, do: Beamr.instantiate!(module)
    {:ok, [1]} = Beamr.call(old, "grow", [40])
    :ok = Beamr.IO.write(old, 0, ["first", :binary.copy("x", 41 * @page - 9), "last"])
    snapshot = Beamr.IO.read!(old, 0, Beamr.IO.size!(old))

    assert {:error, %MemoryError{reason: :out_of_bounds, size: @page}} =
             Beamr.IO.write(fresh, 0, snapshot)

    assert Beamr.IO.read(fresh, 0, @page) == {:ok, <<0::size(@page)-unit(8)>>}

    {:ok, [1]} = Beamr.call(fresh, "grow", [40])
    assert Beamr.IO.write(fresh, 0, snapshot) == :ok
    assert Beamr.IO.read(fresh, 0, 41 * @page) == {:ok, snapshot}
  end

  describe "the guards" do
    # hb_beamr_io's own table. What each refuses is function_clause.
    for {function, good, bad} <- [
          {:size, [], []},
          {:read, [0, 1], [[:a, 1], [0, :a], [-1, 1], [0, -1], [0.0, 1], [0, 1.0], ["0", 1]]},
          {:write, ["x", 0], [[:x, 0], [1, 0], ["x", :a], ["x", -1], ["x", 0.0], [<<1::3>>, 0]]},
          {:read_string, [0], [[:a], [-1], [0.0], [nil]]},
          {:read_string, [0, 8], [[:a, 8], [0, :a], [0, 0], [0, -8], [0, 8.0]]},
          {:write_string, ["x"], [[:x], [1], [nil], [<<1::3>>], [{"x"}]]},
          {:malloc, [1], [[:a], [-1], [1.0], ["1"]]},
          {:free, [1], [[:a], [-1], [1.0], [nil]]}
        ] do
      test "of #{function}/#{length(good) + 1}" do
        wasm = importing(fn _wasm, n -> n end)

        for term <- [nil, 1, 1.5, "wasm", <<1::3>>, [], {}, make_ref(), fn -> nil end] do
          assert_raise FunctionClauseError, fn ->
            apply(Beamr.IO, unquote(function), [term | unquote(good)])
          end
        end

        for args <- unquote(Macro.escape(bad)) do
          assert_raise FunctionClauseError, fn ->
            apply(Beamr.IO, unquote(function), [wasm | args])
          end
        end
      end
    end
  end
end

defmodule Beamr.HbBeamrIOLeakTest do
  # The last row. It is alone, because it measures the memory of the whole VM.
  use Beamr.Case, async: false

  @statm "/proc/self/statm"
  @moduletag skip: not File.exists?(@statm)
  @moduletag timeout: 300_000

  # hb_beamr lost 3 to 22 KB with each operation; this is 100 bytes with each of so many.
  @times 20_000
  @allowance 2 * 1024 * 1024

  @guest """
  (module
    (import "env" "i" (func $i (param i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "string\\00")
    (elem declare func $ref)
    (func $ref (export "ref") (result funcref) (ref.func $ref))
    (func (export "extern") (param externref) (result externref) (local.get 0))
    (func (export "malloc") (param i32) (result i32) (i32.const 1024))
    (func (export "free") (param i32))
    (func (export "f") (param i32) (result i32) (call $i (local.get 0)))
    (func (export "loop") (loop (i32.store (i32.const 0) (i32.const 1)) (br 0)))
    (func (export "trap") unreachable))
  """

  test "memory leak per operation" do
    import = fn
      _wasm, -1 -> throw(:no)
      _wasm, 0 -> 0
      wasm, n -> wasm |> Beamr.call!("f", [n - 1]) |> hd()
    end

    imports = %{"env" => %{"i" => import}}
    module = Beamr.compile!(@guest)
    wasm = Beamr.instantiate!(module, imports: imports)
    data = ["some", :binary.copy("thing", 100)]

    for {operation, times, function} <- [
          {"size", @times, fn -> {:ok, _} = Beamr.IO.size(wasm) end},
          {"read", @times, fn -> {:ok, _} = Beamr.IO.read(wasm, 8, 1024) end},
          {"read past the end", @times,
           fn -> {:error, _} = Beamr.IO.read(wasm, 65_000, 1024) end},
          {"a long read", 200, fn -> {:ok, _} = Beamr.IO.read(wasm, 0, 65_536) end},
          {"write", @times, fn -> :ok = Beamr.IO.write(wasm, 2048, data) end},
          {"write past the end", @times,
           fn -> {:error, _} = Beamr.IO.write(wasm, 65_500, data) end},
          {"read_string", @times, fn -> {:ok, "string"} = Beamr.IO.read_string(wasm, 8) end},
          {"write_string", @times, fn -> {:ok, _} = Beamr.IO.write_string(wasm, data) end},
          {"free", @times, fn -> :ok = Beamr.IO.free(wasm, 8) end},
          {"refused call", @times, fn -> {:error, _} = Beamr.call(wasm, "f", [:x]) end},
          {"import", @times, fn -> {:ok, [0]} = Beamr.call(wasm, "f", [0]) end},
          {"nested calls", @times, fn -> {:ok, [0]} = Beamr.call(wasm, "f", [3]) end},
          {"failing import", @times, fn -> {:error, _} = Beamr.call(wasm, "f", [-1]) end},
          {"trap", @times, fn -> {:error, _} = Beamr.call(wasm, "trap", []) end},
          {"funcref", @times, fn -> {:ok, [_]} = Beamr.call(wasm, "ref", []) end},
          {"externref", @times, fn -> {:ok, [_]} = Beamr.call(wasm, "extern", [{data}]) end},
          {"compilation", 100, fn -> {:ok, _} = Beamr.compile(@guest) end},
          {"instance", 1_000, fn -> {:ok, _} = Beamr.instantiate(module, imports: imports) end},
          {"killed call", 200, fn -> kill_call(module, imports) end},
          {"closed instance", 1_000,
           fn -> module |> Beamr.instantiate!(imports: imports) |> Beamr.close() end}
        ] do
      # The first time brings the VM and its allocators to the size that they need.
      run(times, function)
      before = resident()
      run(times, function)
      grown = resident() - before
      assert grown < @allowance, "#{operation}: #{div(grown, times)} bytes lost with each"
    end
  end

  # A process dies in a call, with the only reference to its instance.
  defp kill_call(module, imports) do
    test = self()

    pid =
      spawn(fn ->
        wasm = Beamr.instantiate!(module, imports: imports)
        send(test, :begun)
        Beamr.call(wasm, "loop", [], timeout: :infinity)
      end)

    assert_receive :begun, 10_000
    kill(pid)
  end

  defp run(times, function) do
    Task.await(Task.async(fn -> Enum.each(1..times, fn _ -> function.() end) end), :infinity)
    :erlang.garbage_collect()
  end

  defp resident do
    [_size, pages | _] = @statm |> File.read!() |> String.split()
    String.to_integer(pages) * 4096
  end
end
