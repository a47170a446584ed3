defmodule Beamr.LimitsTest do
  # Memory, table elements, fuel and stack; and determinism.
  use Beamr.Case, async: true

  alias Beamr.{CallError, ExportError, ImportError, Instance, LimitError, Trap}

  @page 65_536

  @growing """
  (module
    (memory (export "memory") 1)
    (memory $second (export "second") 1 3)
    (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
    (func (export "grow_second") (param i32) (result i32) (memory.grow $second (local.get 0)))
    (func (export "size") (result i32) (memory.size))
    (func (export "size_second") (result i32) (memory.size $second)))
  """

  defp call!(wasm, function, args \\ []) do
    {:ok, [result]} = Beamr.call(wasm, function, args)
    result
  end

  describe "max_memory" do
    test "lets memory.grow go up to it, and answers -1 past it" do
      wasm = Beamr.instantiate!(@growing, max_memory: 5 * @page)
      assert call!(wasm, "grow", [3]) == 1
      assert call!(wasm, "grow", [1]) == -1
      assert call!(wasm, "size") == 4
      assert Beamr.IO.size(wasm) == {:ok, 4 * @page}
    end

    test "is for all memories together" do
      wasm = Beamr.instantiate!(@growing, max_memory: 5 * @page)
      assert call!(wasm, "grow", [1]) == 1
      assert call!(wasm, "grow_second", [2]) == 1
      assert call!(wasm, "grow", [1]) == -1
      assert call!(wasm, "grow_second", [1]) == -1
      assert {call!(wasm, "size"), call!(wasm, "size_second")} == {2, 3}
    end

    test "is in bytes: a page that fits in part does not fit" do
      wasm = Beamr.instantiate!(@growing, max_memory: 3 * @page - 1)
      assert call!(wasm, "grow", [1]) == -1
      wasm = Beamr.instantiate!(@growing, max_memory: 3 * @page)
      assert call!(wasm, "grow", [1]) == 1
    end

    test "is not used up by growths that failed" do
      wasm = Beamr.instantiate!(@growing, max_memory: 6 * @page)
      assert call!(wasm, "grow", [1]) == 1

      for _ <- 1..10 do
        # past the limit, past the module's own maximum, and past all there is
        assert call!(wasm, "grow", [100]) == -1
        assert call!(wasm, "grow_second", [3]) == -1
        assert call!(wasm, "grow", [-1]) == -1
      end

      assert call!(wasm, "grow_second", [1]) == 1
      assert call!(wasm, "grow", [3]) == -1
      assert call!(wasm, "grow", [2]) == 2
      assert call!(wasm, "grow", [1]) == -1
      assert call!(wasm, "grow", [0]) == 4
    end

    test "is not used up by growths that the machine refuses" do
      wasm =
        Beamr.instantiate!(
          """
          (module (memory (export "memory") i64 1)
            (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0))))
          """,
          max_memory: 2 ** 63
        )

      for _ <- 1..5, do: assert(call!(wasm, "grow", [2 ** 46]) == -1)
      assert call!(wasm, "grow", [1]) == 1
    end

    test "any growths of the guest keep to it" do
      module = Beamr.compile!(@growing)

      for_random_cases(20, fn ->
        allowed = random_integer(2, 20)
        wasm = Beamr.instantiate!(module, max_memory: allowed * @page)

        Enum.reduce(1..30, {1, 1}, fn _, {first, second} ->
          delta = random_integer(0, 8)

          case Enum.random(["grow", "grow_second"]) do
            "grow" ->
              fits = first + delta + second <= allowed
              assert call!(wasm, "grow", [delta]) == if(fits, do: first, else: -1)
              {if(fits, do: first + delta, else: first), second}

            "grow_second" ->
              fits = second + delta <= 3 and first + second + delta <= allowed
              assert call!(wasm, "grow_second", [delta]) == if(fits, do: second, else: -1)
              {first, if(fits, do: second + delta, else: second)}
          end
        end)
      end)
    end

    test "that is not enough from the start makes no instance, and says what would be" do
      assert {:error, %LimitError{} = error} =
               Beamr.instantiate("(module (memory 3))", max_memory: 2 * @page)

      assert {error.reason, error.allowed, error.wanted} == {:max_memory, 2 * @page, 3 * @page}

      assert Exception.message(error) ==
               "max_memory allows 131072, the module wants at least 196608"
    end

    test "that is not enough for all memories together makes no instance" do
      assert {:error, %LimitError{reason: :max_memory, allowed: allowed, wanted: wanted}} =
               Beamr.instantiate("(module (memory 2) (memory 3))", max_memory: 4 * @page)

      assert {allowed, wanted} == {4 * @page, 5 * @page}
      assert {:ok, _} = Beamr.instantiate("(module (memory 2) (memory 3))", max_memory: 5 * @page)
    end

    test "is what fails a memory that nobody can have" do
      assert {:error, %LimitError{reason: :max_memory, allowed: @page, wanted: wanted}} =
               Beamr.instantiate("(module (memory i64 0x8000_0000_0000))", max_memory: @page)

      assert wanted == 0x8000_0000_0000 * @page
    end

    test "of 0 allows a module without memory, and nothing else" do
      assert {:ok, _wasm} = Beamr.instantiate("(module)", max_memory: 0)
      assert {:ok, _wasm} = Beamr.instantiate("(module (memory 0))", max_memory: 0)

      assert {:error, %LimitError{allowed: 0, wanted: @page}} =
               Beamr.instantiate("(module (memory 1))", max_memory: 0)
    end

    test "holds in start functions" do
      wasm =
        Beamr.instantiate!(
          """
          (module (memory (export "memory") 1)
            (func $start (i32.store (i32.const 0) (memory.grow (i32.const 1)))) (start $start))
          """,
          max_memory: @page
        )

      assert Beamr.IO.read(wasm, 0, 4) == {:ok, <<-1::32>>}
    end

    test "a start function that was refused memory and then fails is that failure" do
      source = fn then ->
        """
        (module (import "env" "i" (func $i)) (memory 1)
          (func $start (drop (memory.grow (i32.const 1))) #{then}) (start $start))
        """
      end

      opts = [max_memory: @page, imports: %{"env" => %{"i" => fn _wasm -> throw(:no) end}}]

      assert {:error, %Trap{reason: :unreachable}} =
               Beamr.instantiate(source.("unreachable"), opts)

      assert {:error, %ImportError{reason: :no}} = Beamr.instantiate(source.("(call $i)"), opts)

      assert {:error, %CallError{reason: :timeout}} =
               Beamr.instantiate(source.("(loop (br 0))"), [timeout: 5] ++ opts)
    end

    test "holds for growths in nested calls" do
      grow = fn wasm -> call!(wasm, "grow", [1]) end

      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "grow" (func $i (result i32)))
            (memory (export "memory") 1)
            (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
            (func (export "f") (result i32) (call $i)))
          """,
          imports: %{"env" => %{"grow" => grow}},
          max_memory: 2 * @page
        )

      assert call!(wasm, "f") == 1
      assert call!(wasm, "f") == -1
    end

    test "is each instance's own" do
      module = Beamr.compile!(@growing)
      [small, large] = for n <- [2, 4], do: Beamr.instantiate!(module, max_memory: n * @page)
      assert call!(large, "grow", [2]) == 1
      assert call!(small, "grow", [1]) == -1
    end
  end

  describe "max_table_elements" do
    @tables """
    (module
      (table $t (export "t") 2 funcref)
      (table $x (export "x") 1 4 externref)
      (func (export "grow") (param i32) (result i32)
        (table.grow $t (ref.null func) (local.get 0)))
      (func (export "grow_x") (param i32) (result i32)
        (table.grow $x (ref.null extern) (local.get 0))))
    """

    test "lets table.grow go up to it, for all tables together, and answers -1 past it" do
      wasm = Beamr.instantiate!(@tables, max_table_elements: 6)
      assert call!(wasm, "grow", [2]) == 2
      assert call!(wasm, "grow_x", [2]) == -1
      assert call!(wasm, "grow_x", [1]) == 1
      assert call!(wasm, "grow", [1]) == -1
      assert Instance.table_size(wasm, "t") == {:ok, 4}
      assert Instance.table_size(wasm, "x") == {:ok, 2}
    end

    test "holds for table_grow/4, which says so" do
      wasm = Beamr.instantiate!(@tables, max_table_elements: 4)

      assert {:error, %ExportError{reason: :cannot_grow, given: 2, size: 2}} =
               Instance.table_grow(wasm, "t", 2, nil)

      assert Instance.table_grow(wasm, "t", 1, nil) == {:ok, 2}
    end

    test "is not used up by growths that failed" do
      wasm = Beamr.instantiate!(@tables, max_table_elements: 7)
      assert call!(wasm, "grow", [1]) == 2

      for _ <- 1..10 do
        assert call!(wasm, "grow", [100]) == -1
        assert call!(wasm, "grow_x", [4]) == -1
        assert call!(wasm, "grow", [-1]) == -1
        assert {:error, _error} = Instance.table_grow(wasm, "x", 4, nil)
        assert {:error, _error} = Instance.table_grow(wasm, "x", 2 ** 64 - 1, nil)
      end

      assert call!(wasm, "grow_x", [3]) == 1
      assert call!(wasm, "grow", [1]) == -1
    end

    test "that is not enough from the start makes no instance" do
      assert {:error, %LimitError{} = error} = Beamr.instantiate(@tables, max_table_elements: 2)

      assert {error.reason, error.allowed, error.wanted} == {:max_table_elements, 2, 3}
      assert {:ok, _wasm} = Beamr.instantiate(@tables, max_table_elements: 3)
    end
  end

  describe "limits" do
    test "are integers from 0 to 2^64 - 1" do
      module = Beamr.compile!("(module)", fuel: true)

      for name <- [:max_memory, :max_table_elements, :fuel] do
        for value <- [-1, 1.5, :infinity, 2 ** 64, "1", false] do
          assert_raise ArgumentError, ~r/#{inspect(name)} must be an integer from 0/, fn ->
            Beamr.instantiate(module, [{name, value}])
          end
        end

        assert {:ok, _wasm} = Beamr.instantiate(module, [{name, 2 ** 64 - 1}])
      end
    end
  end

  describe "fuel" do
    @metered """
    (module
      (import "env" "i" (func $i))
      (memory (export "memory") 1)
      (func (export "spin") (param i32) (result i32)
        (loop $again (br_if $again (local.tee 0 (i32.sub (local.get 0) (i32.const 1)))))
        (i32.const 7))
      (func (export "f") (call $i))
      (func (export "loop") (loop (br 0)))
      (func (export "ok") (result i32) (i32.const 7)))
    """

    defp metered(opts, import \\ fn _wasm -> nil end) do
      Beamr.instantiate!(@metered, [imports: %{"env" => %{"i" => import}}] ++ opts)
    end

    test "is used by calls, the same for the same work" do
      wasm = metered(fuel: 1_000_000)

      [used | more] =
        for _ <- 1..5 do
          before = Instance.fuel!(wasm)
          assert call!(wasm, "spin", [100]) == 7
          before - Instance.fuel!(wasm)
        end

      assert used > 100
      assert Enum.uniq(more) == [used]
    end

    test "is used the same in other instances, whatever the scheduler" do
      module = Beamr.compile!(@metered, fuel: true)
      imports = %{"env" => %{"i" => fn _wasm -> nil end}}

      left =
        for scheduler <- [:auto, :normal, :dirty] do
          wasm = Beamr.instantiate!(module, fuel: 100_000_000, imports: imports)
          {:ok, [7]} = Beamr.call(wasm, "spin", [10_000_000], scheduler: scheduler)
          Instance.fuel!(wasm)
        end

      assert [_one] = Enum.uniq(left)
    end

    test "that runs out is a trap, and none is left" do
      wasm = metered(fuel: 1_000)

      assert {:error, %Trap{reason: :out_of_fuel, function: "loop"}} =
               Beamr.call(wasm, "loop", [])

      assert Instance.fuel(wasm) == {:ok, 0}
      assert {:error, %Trap{reason: :out_of_fuel}} = Beamr.call(wasm, "ok", [])
    end

    test "can be added, and the instance goes on" do
      wasm = metered(fuel: 0)
      assert {:error, %Trap{reason: :out_of_fuel}} = Beamr.call(wasm, "ok", [])
      assert Instance.add_fuel(wasm, 100) == {:ok, 100}
      assert Beamr.call(wasm, "ok", []) == {:ok, [7]}
      assert {:ok, left} = Instance.fuel(wasm)
      assert left in 1..99
      assert Instance.add_fuel!(wasm, 1_000) == left + 1_000
    end

    test "is 2^64 - 1 at most" do
      wasm = metered(fuel: 10)
      assert Instance.add_fuel(wasm, 2 ** 64 - 1) == {:ok, 2 ** 64 - 1}
      assert Instance.add_fuel(wasm, 2 ** 100) == {:ok, 2 ** 64 - 1}
      assert Instance.add_fuel(wasm, 0) == {:ok, 2 ** 64 - 1}
      assert call!(wasm, "ok") == 7
    end

    test "of a metered module is as good as endless unless given" do
      wasm = Beamr.instantiate!(Beamr.compile!("(module (func (export \"f\")))", fuel: true))
      assert Instance.fuel!(wasm) > 2 ** 62
      assert Beamr.call(wasm, "f", []) == {:ok, []}
    end

    test "is used by start functions, and may run out there" do
      source = """
      (module (func $start (local i32)
          (loop (br_if 0 (i32.lt_u (local.tee 0 (i32.add (local.get 0) (i32.const 1)))
            (i32.const 1000)))))
        (start $start))
      """

      assert {:error, %Trap{reason: :out_of_fuel, function: nil}} =
               Beamr.instantiate(source, fuel: 500)

      assert Instance.fuel!(Beamr.instantiate!(source, fuel: 100_000)) in 1..99_000
    end

    test "is seen and added inside an import" do
      test = self()

      wasm =
        metered([fuel: 1_000], fn wasm ->
          before = Instance.fuel!(wasm)
          assert before in 1..999
          send(test, {before, Instance.add_fuel!(wasm, 5_000), Instance.fuel!(wasm)})
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, []}
      assert_received {before, added, added}
      assert added == before + 5_000
      assert Instance.fuel!(wasm) in (before + 1)..added
    end

    test "that is added inside an import lets the guest go on where it stood" do
      test = self()

      wasm =
        metered([fuel: 1_000], fn wasm ->
          send(test, Beamr.call(wasm, "loop", []))
          Instance.add_fuel!(wasm, 1_000)
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, []}
      assert_received {:error, %Trap{reason: :out_of_fuel}}
    end

    test "that a nested call has used up is missing in the call around it" do
      wasm = metered([fuel: 1_000], fn wasm -> Beamr.call(wasm, "loop", []) end)
      assert {:error, %Trap{reason: :out_of_fuel}} = Beamr.call(wasm, "spin", [1_000])
      Instance.add_fuel!(wasm, 100)
      Beamr.call(wasm, "f", [])
      assert Instance.fuel!(wasm) == 0
    end

    test "is seen by another process while an import runs" do
      wasm =
        metered([fuel: 1_000], fn wasm ->
          assert Task.await(Task.async(fn -> Instance.add_fuel!(wasm, 1_000) end)) in 1_001..1_999
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, []}
    end

    test "is added by another process when a loop has ended" do
      wasm = metered(fuel: 2 ** 64 - 1)
      loop = Task.async(fn -> Beamr.call(wasm, "loop", [], timeout: :infinity) end)

      before = 2 ** 62
      asking = Task.async(fn -> Instance.fuel(wasm) end)
      # However the two came to be ordered, the loop ends by this.
      eventually(fn ->
        Beamr.interrupt(wasm)
        Task.yield(loop, 0) != nil
      end)

      assert {:ok, left} = Task.await(asking)
      assert left > before
    end

    test "of a module that is not metered is an error" do
      wasm = Beamr.instantiate!("(module)")
      assert {:error, %ExportError{reason: :not_metered, kind: :fuel}} = Instance.fuel(wasm)
      assert {:error, %ExportError{reason: :not_metered}} = Instance.add_fuel(wasm, 1)
      assert_raise ExportError, ~r/fuel: true/, fn -> Instance.fuel!(wasm) end
    end

    test "cannot be given to a module that is not metered" do
      assert_raise ArgumentError, ~r/fuel: true/, fn ->
        Beamr.instantiate(Beamr.compile!("(module)"), fuel: 1)
      end
    end

    test "of a closed instance is an error" do
      wasm = metered(fuel: 1)
      Beamr.close(wasm)
      assert {:error, %ExportError{reason: :closed, kind: :fuel}} = Instance.fuel(wasm)
      assert {:error, %ExportError{reason: :closed, kind: :fuel}} = Instance.add_fuel(wasm, 1)
    end

    test "is not used by what a call does in Elixir" do
      one = metered([fuel: 1_000], fn _wasm -> nil end)
      other = metered([fuel: 1_000], fn _wasm -> Enum.sum(1..100_000) end)
      for wasm <- [one, other], do: assert(Beamr.call(wasm, "f", []) == {:ok, []})
      assert Instance.fuel!(one) == Instance.fuel!(other)
    end
  end

  describe "the stack" do
    @deep """
    (module
      (import "env" "i" (func $i))
      (func $deep (export "deep") (param i32) (result i32)
        (if (result i32) (local.get 0)
          (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
          (else (i32.const 0))))
      (func $endless (export "endless") (result i32)
        (i32.add (call $endless) (i32.const 1)))
      (func (export "f") (call $i)))
    """

    defp deep(import \\ fn _wasm -> nil end) do
      Beamr.instantiate!(@deep, imports: %{"env" => %{"i" => import}})
    end

    for scheduler <- [:auto, :normal, :dirty] do
      test "that a guest overflows with #{scheduler} is a trap, and the instance stays usable" do
        wasm = deep()
        opts = [scheduler: unquote(scheduler)]

        for _ <- 1..20 do
          assert {:error, %Trap{reason: :stack_overflow}} = Beamr.call(wasm, "endless", [], opts)
        end

        assert Beamr.call(wasm, "deep", [1_000], opts) == {:ok, [1_000]}
      end
    end

    test "that a start function overflows makes no instance" do
      assert {:error, %Trap{reason: :stack_overflow, function: nil}} =
               Beamr.instantiate("(module (func $f (call $f)) (start $f))")
    end

    test "is there for each level of a nest" do
      test = self()

      wasm =
        deep(fn wasm ->
          send(test, {:inner, Beamr.call(wasm, "deep", [1_000])})
          send(test, {:inner, Beamr.call(wasm, "endless", [])})
        end)

      assert Beamr.call(wasm, "f", []) == {:ok, []}
      assert_received {:inner, {:ok, [1_000]}}
      assert_received {:inner, {:error, %Trap{reason: :stack_overflow}}}
    end
  end

  describe "deterministic: true" do
    @nans """
    (module
      (func (export "f64") (param f64 f64) (result i64)
        (i64.reinterpret_f64 (f64.div (local.get 0) (local.get 1))))
      (func (export "f32") (param f32 f32) (result i32)
        (i32.reinterpret_f32 (f32.div (local.get 0) (local.get 1))))
      (func (export "payload") (result i64)
        (i64.reinterpret_f64 (f64.add (f64.const 1) (f64.const -nan:0x8000000001234))))
      (func (export "sqrt") (param f64) (result i64)
        (i64.reinterpret_f64 (f64.sqrt (local.get 0))))
      (func (export "f64x2") (result i64) (i64x2.extract_lane 1
        (f64x2.div (v128.const f64x2 0 0) (v128.const f64x2 0 0)))))
    """

    setup do
      %{compiled: Beamr.compile!(@nans, deterministic: true)}
    end

    test "makes NaNs canonical", %{compiled: module} do
      wasm = Beamr.instantiate!(module)
      assert call!(wasm, "f64", [0, 0]) == 0x7FF8000000000000
      assert call!(wasm, "f64", [:infinity, :infinity]) == 0x7FF8000000000000
      assert call!(wasm, "f32", [0, 0]) == 0x7FC00000
      assert call!(wasm, "payload") == 0x7FF8000000000000
      assert call!(wasm, "sqrt", [-1]) == 0x7FF8000000000000
      assert call!(wasm, "f64x2") == 0x7FF8000000000000
    end

    test "meters, and uses the same fuel for the same work in every instance", %{compiled: module} do
      [one, other] =
        for _ <- 1..2 do
          wasm = Beamr.instantiate!(module, fuel: 10_000)
          results = for n <- 1..10, do: call!(wasm, "f64", [n, 3])
          {results, Instance.fuel!(wasm)}
        end

      assert one == other
      assert elem(one, 1) < 10_000
    end

    test "gives the same with relaxed SIMD as the instructions that it stands for" do
      wasm =
        Beamr.instantiate!(
          Beamr.compile!(
            """
            (module
              (func (export "swizzle") (param v128 v128) (result v128)
                (i8x16.relaxed_swizzle (local.get 0) (local.get 1)))
              (func (export "strict") (param v128 v128) (result v128)
                (i8x16.swizzle (local.get 0) (local.get 1))))
            """,
            deterministic: true
          )
        )

      bytes = "0123456789abcdef"
      lanes = <<0, 15, 16, 17, 100, 127, 128, 129, 143, 200, 240, 255, 1, 2, 3, 4>>
      assert call!(wasm, "swizzle", [bytes, lanes]) == call!(wasm, "strict", [bytes, lanes])
    end

    test "is true or false" do
      for name <- [:deterministic, :fuel, :compact], value <- [nil, 1, :yes] do
        assert_raise ArgumentError, ~r/#{inspect(name)} must be true or false/, fn ->
          Beamr.compile("(module)", [{name, value}])
        end
      end
    end
  end
end
