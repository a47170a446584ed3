defmodule Beamr.ImportTest do
  # Imported memories, globals and tables. Imported functions are in instance_test.exs.
  use Beamr.Case, async: true

  alias Beamr.{ExportError, Instance, LimitError, LinkError, MemoryError, Trap}

  @page 65_536

  # Reads and writes its memory, which it does not export.
  @reader """
  (module
    (import "env" "memory" (memory 1 3))
    (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
    (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
    (func (export "size") (result i32) (memory.size)))
  """

  defp env(items), do: [imports: %{"env" => items}]

  defp memory(source, given, opts \\ []) do
    Beamr.instantiate!(source, env(%{"memory" => given}) ++ opts)
  end

  defp problems(source, items) do
    assert {:error, %LinkError{imports: problems}} = Beamr.instantiate(source, env(items))
    for problem <- problems, do: Map.drop(problem, [:module, :wanted])
  end

  defp problem(source, given, name \\ "memory") do
    assert [%{name: ^name, given: ^given} = problem] = problems(source, %{name => given})
    Map.drop(problem, [:name, :given])
  end

  defp call!(wasm, function, args \\ []) do
    {:ok, [result]} = Beamr.call(wasm, function, args)
    result
  end

  describe "an imported memory" do
    test "has the pages it was given, and grows to its own maximum" do
      wasm = memory(@reader, {:memory, 1, 2})
      assert Beamr.IO.size(wasm) == {:ok, @page}
      assert call!(wasm, "grow", [1]) == 1
      assert call!(wasm, "grow", [1]) == -1
      assert Beamr.IO.size(wasm) == {:ok, 2 * @page}
    end

    test "may begin with more than the module asks for" do
      assert memory(@reader, {:memory, 3, 3}) |> call!("size") == 3
    end

    test "by its name alone takes the module's limits" do
      wasm = memory(@reader, :memory)
      assert call!(wasm, "size") == 1
      assert call!(wasm, "grow", [2]) == 1
      assert call!(wasm, "grow", [1]) == -1
    end

    test "without a maximum grows as far as its index goes" do
      source = ~S|(module (import "env" "memory" (memory 1))
        (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0))))|

      for given <- [:memory, {:memory, 1}, {:memory, 1, nil}, {:memory, 1, :infinity}] do
        wasm = memory(source, given)
        assert call!(wasm, "grow", [9]) == 1
        assert call!(wasm, "grow", [65_536]) == -1
      end
    end

    test "is what the guest's code and Beamr.IO both see" do
      wasm = memory(@reader, :memory)
      assert Beamr.call(wasm, "store", [8, 0x01020304]) == {:ok, []}
      assert Beamr.IO.read(wasm, 8, 4) == {:ok, <<4, 3, 2, 1>>}
      :ok = Beamr.IO.write(wasm, <<7, 0, 0, 0>>, 8)
      assert call!(wasm, "load", [8]) == 7
    end

    test "is bounded as any other" do
      wasm = memory(@reader, :memory)

      assert {:error, %MemoryError{reason: :out_of_bounds, size: @page}} =
               Beamr.IO.read(wasm, @page, 1)

      assert {:error, %Trap{reason: :memory_out_of_bounds}} = Beamr.call(wasm, "load", [@page])
    end

    test "is each instance's own" do
      module = Beamr.compile!(@reader)
      [one, other] = for _ <- 1..2, do: memory(module, :memory)
      {:ok, []} = Beamr.call(one, "store", [0, 1])
      assert {call!(one, "load", [0]), call!(other, "load", [0])} == {1, 0}
    end

    test "is filled by the module's data" do
      source = ~S|(module (import "env" "memory" (memory 1)) (data (i32.const 16) "wasm\00"))|
      assert source |> memory(:memory) |> Beamr.IO.read_string(16) == {:ok, "wasm"}
    end

    test "whose data does not fit traps" do
      source = ~S|(module (import "env" "memory" (memory 1)) (data (i32.const 65535) "wasm"))|

      assert {:error, %Trap{reason: :memory_out_of_bounds}} =
               Beamr.instantiate(source, env(%{"memory" => :memory}))
    end

    test "may be addressed with 64 bits" do
      source = """
      (module (import "env" "memory" (memory i64 1 4294967296))
        (func (export "size") (result i64) (memory.size)))
      """

      wasm = memory(source, {:memory, 2, 4_294_967_296})
      assert call!(wasm, "size") == 2
      assert Beamr.IO.size(wasm) == {:ok, 2 * @page}
    end

    test "may be addressed with 64 bits without a maximum" do
      source = ~S|(module (import "env" "memory" (memory i64 1)))|
      assert source |> memory({:memory, 2}) |> Beamr.IO.size() == {:ok, 2 * @page}
      assert source |> memory({:memory, 2, 2 ** 48}) |> Beamr.IO.size() == {:ok, 2 * @page}

      assert problem(source, {:memory, 2, 2 ** 48 + 1}) ==
               %{problem: :too_large, required: 2 ** 48, provided: 2 ** 48 + 1}
    end

    test "is one memory where it is imported twice" do
      source = """
      (module
        (import "env" "memory" (memory $one 1))
        (import "env" "memory" (memory $same 2 4))
        (func (export "f") (result i32)
          (i32.store $one (i32.const 8) (i32.const 42))
          (i32.load $same (i32.const 8))))
      """

      for given <- [:memory, {:memory, 2, 4}] do
        wasm = memory(source, given)
        assert call!(wasm, "f") == 42
        assert Beamr.IO.size(wasm) == {:ok, 2 * @page}
      end

      assert [%{problem: :too_small, required: 2, provided: 1}] =
               problems(source, %{"memory" => {:memory, 1, 4}})
    end

    test "counts towards max_memory" do
      wasm = memory(@reader, :memory, max_memory: 2 * @page)
      assert call!(wasm, "grow", [1]) == 1
      assert call!(wasm, "grow", [1]) == -1
    end

    test "of more than max_memory keeps the instance from being made" do
      assert {:error, %LimitError{reason: :max_memory, allowed: @page, wanted: 131_072}} =
               Beamr.instantiate(
                 @reader,
                 env(%{"memory" => {:memory, 2, 3}}) ++ [max_memory: @page]
               )
    end

    test "counts towards max_memory together with the module's own" do
      source = ~S|(module (import "env" "memory" (memory 1)) (memory (export "own") 1))|
      opts = env(%{"memory" => :memory})
      assert {:ok, _wasm} = Beamr.instantiate(source, [max_memory: 2 * @page] ++ opts)

      assert {:error, %LimitError{reason: :max_memory, wanted: 131_072}} =
               Beamr.instantiate(source, [max_memory: 2 * @page - 1] ++ opts)
    end

    test "of more pages than the system has is an error" do
      source = ~S|(module (import "env" "memory" (memory i64 1)))|

      for pages <- [2 ** 40, 2 ** 47, 2 ** 48 - 1, 2 ** 48] do
        assert {:error, %Beamr.CallError{reason: :system}} =
                 Beamr.instantiate(source, env(%{"memory" => {:memory, pages}}))
      end
    end
  end

  describe "the memory that is meant" do
    test "is an exported one before an imported one" do
      source = """
      (module
        (import "env" "memory" (memory 1))
        (memory (export "own") 2)
        (data (memory 0) (i32.const 0) "imported") (data (memory 1) (i32.const 0) "exported"))
      """

      wasm = memory(source, :memory)
      assert Beamr.IO.read(wasm, 0, 8) == {:ok, "exported"}
      assert Beamr.IO.read(wasm, 0, 8, memory: "memory") == {:ok, "imported"}
    end

    test "is the imported one called memory, or else the first" do
      source = """
      (module (import "a" "first" (memory 1)) (import "b" "second" (memory 2)) #)
      """

      imports = %{
        "a" => %{"first" => :memory},
        "b" => %{"second" => :memory, "memory" => :memory}
      }

      wasm = Beamr.instantiate!(String.replace(source, "#", ""), imports: imports)
      assert Beamr.IO.size(wasm) == {:ok, @page}
      assert Beamr.IO.size(wasm, memory: "second") == {:ok, 2 * @page}

      third = ~S|(import "b" "memory" (memory 3))|
      wasm = Beamr.instantiate!(String.replace(source, "#", third), imports: imports)
      assert Beamr.IO.size(wasm) == {:ok, 3 * @page}
    end

    test "has the export's name where that is another memory's import" do
      source = """
      (module (import "env" "m" (memory 1)) (memory (export "m") 2) (export "also" (memory 0)))
      """

      wasm = Beamr.instantiate!(source, env(%{"m" => :memory}))
      assert Beamr.IO.size(wasm, memory: "m") == {:ok, 2 * @page}
      assert Beamr.IO.size(wasm, memory: "also") == {:ok, @page}
    end

    test "is the first of two imports of one name" do
      source = ~S|(module (import "a" "m" (memory 1)) (import "b" "m" (memory 2)))|
      imports = %{"a" => %{"m" => :memory}, "b" => %{"m" => :memory}}
      wasm = Beamr.instantiate!(source, imports: imports)
      assert Beamr.IO.size(wasm, memory: "m") == {:ok, @page}
    end

    test "is there inside imports, in a start function too" do
      source = """
      (module
        (import "env" "memory" (memory 1))
        (import "env" "see" (func $see))
        (func $start
          (i32.store (i32.const 0) (i32.const 42))
          (call $see)
          (i32.store (i32.const 8) (i32.add (i32.load (i32.const 4)) (i32.const 1))))
        (export "start" (func $start))
        (start $start))
      """

      see = fn wasm ->
        <<n::little-32>> = Beamr.IO.read!(wasm, 0, 4)
        Beamr.IO.write!(wasm, <<n + 1::little-32>>, 4)
      end

      wasm = Beamr.instantiate!(source, env(%{"memory" => :memory, "see" => see}))
      assert Beamr.IO.read(wasm, 8, 4) == {:ok, <<44::little-32>>}
      :ok = Beamr.IO.write(wasm, <<0::96>>, 0)
      assert Beamr.call(wasm, "start", []) == {:ok, []}
      assert Beamr.IO.read(wasm, 8, 4) == {:ok, <<44::little-32>>}
    end

    test "can be read while a call is suspended, by any process" do
      source = """
      (module
        (import "env" "memory" (memory 1))
        (func (export "count")
          (loop $again
            (i64.store (i32.const 0) (i64.add (i64.load (i32.const 0)) (i64.const 1)))
            (br $again))))
      """

      wasm = memory(source, :memory)
      task = start_endless(wasm)
      seen = counter(wasm)
      eventually(fn -> counter(wasm) > seen end)
      kill(task.pid)
    end

    test "is a server's as well" do
      guest = start_supervised!({Beamr.Server, [module: @reader] ++ env(%{"memory" => :memory})})
      :ok = Beamr.IO.write(guest, <<7, 0, 0, 0>>, 0)
      assert Beamr.call(guest, "load", [0]) == {:ok, [7]}
    end
  end

  describe "a memory that does not fit" do
    test "is too small, too large or without a maximum, in pages" do
      assert problem(@reader, {:memory, 0, 3}) ==
               %{problem: :too_small, required: 1, provided: 0}

      assert problem(@reader, {:memory, 1, 4}) ==
               %{problem: :too_large, required: 3, provided: 4}

      assert problem(@reader, {:memory, 4, 4}) ==
               %{problem: :too_large, required: 3, provided: 4}

      for given <- [{:memory, 1}, {:memory, 1, nil}, {:memory, 1, :infinity}] do
        assert problem(@reader, given) == %{problem: :no_maximum, required: 3, provided: nil}
      end
    end

    test "has more pages than 32 bits address" do
      source = ~S|(module (import "env" "memory" (memory 1)))|

      for given <- [{:memory, 65_537}, {:memory, 1, 65_537}] do
        assert problem(source, given) ==
                 %{problem: :too_large, required: 65_536, provided: 65_537}
      end

      assert problem(source, {:memory, 2 ** 80}).provided == 2 ** 80
    end

    test "is something else altogether" do
      other = memory(@reader, :memory)

      for given <- [
            nil,
            :table,
            {:table, 1, 2},
            {:global, 1},
            {:memory, -1},
            {:memory, 1.0, 2},
            {:memory, 3, 2},
            {:memory, 1, :two},
            {:memory, 1, 2, 3},
            {:memory},
            fn _wasm -> nil end,
            other,
            {other, "memory"}
          ] do
        assert problem(@reader, given) == %{problem: :type}
      end
    end

    test "is told with all else that does not fit" do
      source = """
      (module
        (import "env" "f" (func (param i32)))
        (import "env" "memory" (memory 2 3))
        (import "env" "ok" (global i32))
        (import "env" "g" (global i32))
        (import "env" "t" (table 5 funcref))
        (import "env" "gone" (memory 1)))
      """

      items = %{
        "f" => :nope,
        "memory" => {:memory, 1, 3},
        "ok" => :global,
        "g" => {:global, 2 ** 32},
        "t" => {:table, 4}
      }

      assert problems(source, items) == [
               %{name: "f", problem: :type, given: :nope},
               %{
                 name: "memory",
                 problem: :too_small,
                 required: 2,
                 provided: 1,
                 given: {:memory, 1, 3}
               },
               %{name: "g", problem: :value, given: {:global, 2 ** 32}},
               %{name: "t", problem: :too_small, required: 5, provided: 4, given: {:table, 4}},
               %{name: "gone", problem: :missing, given: nil}
             ]
    end
  end

  describe "an imported global" do
    # One of each type, immutable, and each is handed out.
    @types ~w(i32 i64 f32 f64 v128 externref funcref)
    @globals (for type <- @types, into: "" do
                """
                (module
                (import "env" "g" (global $g #{type}))
                (func (export "get") (result #{type}) (global.get $g)))
                """
              end)
             |> String.split("(module\n", trim: true)

    defp global(type, given) do
      source = "(module " <> Enum.at(@globals, Enum.find_index(@types, &(&1 == type)))
      Beamr.instantiate(source, env(%{"g" => given}))
    end

    test "begins with its value, of every type" do
      for {type, value, seen} <- [
            {"i32", -1, -1},
            {"i32", 0xFFFFFFFF, -1},
            {"i64", 2 ** 63, -(2 ** 63)},
            {"f32", 0.5, 0.5},
            {"f64", :nan, :nan},
            {"f64", 3, 3.0},
            {"v128", <<1::128>>, <<1::128>>},
            {"externref", {:any, "term"}, {:any, "term"}},
            {"externref", nil, nil},
            {"funcref", nil, nil}
          ] do
        {:ok, wasm} = global(type, {:global, value})
        assert Beamr.call(wasm, "get", []) == {:ok, [seen]}
        assert Instance.get_global(wasm, "g") == {:ok, seen}
      end
    end

    test "by its name alone begins with zero or null" do
      zeros = [0, 0, 0.0, 0.0, <<0::128>>, nil, nil]

      for {type, zero} <- Enum.zip(@types, zeros) do
        {:ok, wasm} = global(type, :global)
        assert Beamr.call(wasm, "get", []) == {:ok, [zero]}
      end
    end

    test "takes no value outside its type" do
      func =
        ~S|(module (func (export "f")) (table (export "t") funcref (elem 0)))|
        |> Beamr.instantiate!()
        |> Instance.table_get!("t", 0)

      for {type, value} <- [
            {"i32", 2 ** 32},
            {"i32", 1.0},
            {"i64", -(2 ** 63) - 1},
            {"f32", 1.0e300},
            {"f64", "1"},
            {"v128", <<1>>},
            {"funcref", :f},
            {"funcref", func}
          ] do
        assert {:error, %LinkError{imports: [problem]}} = global(type, {:global, value})
        assert %{problem: :value, given: {:global, ^value}} = problem
      end
    end

    test "is no bare value" do
      assert {:error, %LinkError{imports: [%{problem: :type, given: 7}]}} = global("i32", 7)
    end

    test "is the guest's and the host's to set, if it is mutable" do
      source = """
      (module
        (import "env" "level" (global $level (mut i32)))
        (import "env" "fixed" (global i32))
        (func (export "up") (global.set $level (i32.add (global.get $level) (i32.const 1)))))
      """

      module = Beamr.compile!(source)
      items = %{"level" => {:global, 5}, "fixed" => {:global, 1}}
      [wasm, other] = for _ <- 1..2, do: Beamr.instantiate!(module, env(items))
      assert Beamr.call(wasm, "up", []) == {:ok, []}
      assert Instance.get_global(wasm, "level") == {:ok, 6}
      assert Instance.set_global(wasm, "level", 10) == :ok
      assert Beamr.call(wasm, "up", []) == {:ok, []}
      assert Instance.get_global(wasm, "level") == {:ok, 11}
      assert Instance.get_global(other, "level") == {:ok, 5}
      assert {:error, %ExportError{reason: :immutable}} = Instance.set_global(wasm, "fixed", 2)
    end

    test "is hidden by another that is exported under its name" do
      source = """
      (module (import "env" "g" (global i32)) (global (export "g") i32 (i32.const 1)))
      """

      wasm = Beamr.instantiate!(source, env(%{"g" => {:global, 2}}))
      assert Instance.get_global(wasm, "g") == {:ok, 1}
    end

    test "is there inside an import that a start function calls" do
      source = """
      (module
        (import "env" "level" (global $level (mut i32)))
        (import "env" "see" (func $see))
        (global (export "seen") (mut i32) (i32.const 0))
        (func $start (call $see) (global.set 1 (global.get $level)))
        (start $start))
      """

      see = fn wasm ->
        level = Instance.get_global!(wasm, "level")
        Instance.set_global!(wasm, "level", level * 2)
      end

      wasm = Beamr.instantiate!(source, env(%{"level" => {:global, 21}, "see" => see}))
      assert Instance.get_global(wasm, "seen") == {:ok, 42}
    end

    test "lays out the data of a module, as linkers have it" do
      source = """
      (module
        (import "env" "memory" (memory 1))
        (import "env" "__memory_base" (global $base i32))
        (import "env" "__indirect_function_table" (table 2 funcref))
        (import "env" "__table_base" (global $slot i32))
        (data (global.get $base) "here")
        (func $seven (result i32) (i32.const 7))
        (elem (global.get $slot) func $seven)
        (func (export "f") (result i32) (call_indirect (result i32) (global.get $slot))))
      """

      items = %{
        "memory" => :memory,
        "__memory_base" => {:global, 1024},
        "__indirect_function_table" => :table,
        "__table_base" => {:global, 1}
      }

      wasm = Beamr.instantiate!(source, env(items))
      assert Beamr.IO.read(wasm, 1024, 4) == {:ok, "here"}
      assert Beamr.call(wasm, "f", []) == {:ok, [7]}
      {:ok, seven} = Instance.table_get(wasm, "__indirect_function_table", 1)
      assert Beamr.call(wasm, seven, []) == {:ok, [7]}
    end
  end

  describe "an imported table" do
    @table ~S"""
    (module
      (import "env" "t" (table $t 1 3 externref))
      (func (export "get") (param i32) (result externref) (table.get (local.get 0)))
      (func (export "grow") (param i32) (result i32) (table.grow (ref.null extern) (local.get 0))))
    """

    defp table(given, opts \\ []), do: Beamr.instantiate!(@table, env(%{"t" => given}) ++ opts)

    test "has the size it was given, and grows to its own maximum" do
      wasm = table({:table, 1, 2})
      assert Instance.table_size(wasm, "t") == {:ok, 1}
      assert call!(wasm, "grow", [1]) == 1
      assert {:error, %ExportError{reason: :cannot_grow}} = Instance.table_grow(wasm, "t", 1, nil)
    end

    test "by its name alone takes the module's limits" do
      wasm = table(:table)
      assert Instance.table_grow(wasm, "t", 2, :new) == {:ok, 1}
      assert call!(wasm, "get", [0]) == nil
      assert call!(wasm, "get", [2]) == :new
      assert call!(wasm, "grow", [1]) == -1
    end

    test "is set and read by the name of the import" do
      wasm = table(:table)
      assert Instance.table_set(wasm, "t", 0, {:a, :term}) == :ok
      assert call!(wasm, "get", [0]) == {:a, :term}
      assert Instance.table_get(wasm, "t", 0) == {:ok, {:a, :term}}
    end

    test "may be addressed with 64 bits" do
      source = ~S|(module (import "env" "t" (table i64 1 funcref)))|
      wasm = Beamr.instantiate!(source, env(%{"t" => {:table, 2, 2 ** 40}}))
      assert Instance.table_size(wasm, "t") == {:ok, 2}
    end

    test "that does not fit says how many elements are required" do
      assert problem(@table, {:table, 0, 3}, "t") ==
               %{problem: :too_small, required: 1, provided: 0}

      assert problem(@table, {:table, 1, 4}, "t") ==
               %{problem: :too_large, required: 3, provided: 4}

      assert problem(@table, {:table, 1}, "t") ==
               %{problem: :no_maximum, required: 3, provided: nil}

      assert problem(@table, :memory, "t") == %{problem: :type}

      assert problem(~S|(module (import "env" "t" (table 1 funcref)))|, {:table, 2 ** 32}, "t") ==
               %{problem: :too_large, required: 2 ** 32 - 1, provided: 2 ** 32}
    end

    test "begins with no more than any table may" do
      for {type, minimum} <- [{"", 2 ** 32 - 1}, {"i64", 2 ** 64 - 1}, {"", 10_000_001}] do
        source = ~s|(module (import "env" "t" (table #{type} 1 funcref)))|

        assert problem(source, {:table, minimum}, "t") ==
                 %{problem: :too_large, required: 10_000_000, provided: minimum}
      end

      source = ~S|(module (import "env" "t" (table 1 funcref)))|
      wasm = Beamr.instantiate!(source, env(%{"t" => {:table, 10_000_000}}))
      assert Instance.table_size(wasm, "t") == {:ok, 10_000_000}
      Beamr.close(wasm)
    end

    test "of elements that cannot be null cannot be given" do
      assert problem(~S|(module (import "env" "t" (table 1 (ref extern))))|, :table, "t") ==
               %{problem: :type}
    end

    test "counts towards max_table_elements" do
      wasm = table(:table, max_table_elements: 2)
      assert call!(wasm, "grow", [1]) == 1
      assert call!(wasm, "grow", [1]) == -1

      assert {:error, %LimitError{reason: :max_table_elements, allowed: 1, wanted: 2}} =
               Beamr.instantiate(@table, env(%{"t" => {:table, 2, 3}}) ++ [max_table_elements: 1])
    end
  end

  test "any limits are accepted or refused by the specification's rule" do
    for_random_cases(300, fn ->
      {kind, type, most} =
        Enum.random([
          {:memory, "", 65_536},
          {:memory, "i64 ", 2 ** 48},
          {:table, "", 2 ** 32 - 1},
          {:table, "i64 ", 2 ** 64 - 1}
        ])

      wanted_minimum = random_integer(0, 5)
      wanted_maximum = Enum.random([nil, wanted_minimum + random_integer(0, 5)])
      minimum = random_integer(0, 8)
      maximum = Enum.random([nil, minimum + random_integer(0, 5), most, most + 1])

      fits =
        minimum >= wanted_minimum and
          (maximum || minimum) <= (wanted_maximum || most) and
          (wanted_maximum == nil or maximum != nil)

      element = if kind == :table, do: " funcref"
      limits = "#{type}#{wanted_minimum} #{wanted_maximum}#{element}"
      source = ~s|(module (import "env" "it" (#{kind} #{limits})))|

      case Beamr.instantiate(source, env(%{"it" => {kind, minimum, maximum}})) do
        {:ok, wasm} when kind == :memory ->
          assert fits
          assert Beamr.IO.size(wasm) == {:ok, minimum * @page}

        {:ok, wasm} ->
          assert fits
          assert Instance.table_size(wasm, "it") == {:ok, minimum}

        {:error, %LinkError{imports: [%{problem: problem}]}} ->
          refute fits
          assert problem in [:too_small, :too_large, :no_maximum]
      end
    end)
  end

  test "tags cannot be given" do
    source = ~S|(module (import "env" "tag" (tag (param i32))))|

    for given <- [:tag, {:tag, [:i32]}, :memory] do
      assert problem(source, given, "tag") == %{problem: :type}
    end
  end

  test "thousands of them take no time that grows with their square" do
    count = 20_000
    globals = for n <- 1..count, do: ~s|(import "env" "g#{n}" (global i32))|
    module = Beamr.compile!("(module #{globals})")
    items = for n <- 1..count, into: %{}, do: {"g#{n}", {:global, n}}
    wasm = Beamr.instantiate!(module, env(items))
    assert Instance.get_global(wasm, "g#{count}") == {:ok, count}
  end

  test "functions beside them are called as ever" do
    source = """
    (module
      (import "env" "memory" (memory 1))
      (import "env" "add" (func $add (param i32 i32) (result i32)))
      (import "env" "g" (global $g i32))
      (import "env" "neg" (func $neg (param i32) (result i32)))
      (func (export "f") (result i32) (call $neg (call $add (global.get $g) (i32.const 2)))))
    """

    items = %{
      "memory" => :memory,
      "add" => fn _wasm, a, b -> a + b end,
      "g" => {:global, 40},
      "neg" => {:list, fn _wasm, [n] -> -n end}
    }

    assert source |> Beamr.instantiate!(env(items)) |> call!("f") == -42
  end
end
