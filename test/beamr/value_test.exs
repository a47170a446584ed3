defmodule Beamr.ValueTest do
  # t:Beamr.value/0: every type to the guest and back, and what each refuses.
  use Beamr.Case, async: true

  alias Beamr.CallError

  # Identity functions, and the bits of floats.
  @guest """
  (module
    (func (export "i32") (param i32) (result i32) (local.get 0))
    (func (export "i64") (param i64) (result i64) (local.get 0))
    (func (export "f32") (param f32) (result f32) (local.get 0))
    (func (export "f64") (param f64) (result f64) (local.get 0))
    (func (export "v128") (param v128) (result v128) (local.get 0))
    (func (export "f32_bits") (param f32) (result i32) (i32.reinterpret_f32 (local.get 0)))
    (func (export "f64_bits") (param f64) (result i64) (i64.reinterpret_f64 (local.get 0)))
    (func (export "bits_f32") (param i32) (result f32) (f32.reinterpret_i32 (local.get 0)))
    (func (export "bits_f64") (param i64) (result f64) (f64.reinterpret_i64 (local.get 0))))
  """

  setup_all do
    {:ok, compiled: Beamr.compile!(@guest)}
  end

  setup %{compiled: module} do
    {:ok, wasm: Beamr.instantiate!(module)}
  end

  defp same(wasm, function, arg) do
    [result] = Beamr.call!(wasm, function, [arg])
    result
  end

  defp refused(wasm, function, arg) do
    assert {:error, %CallError{reason: :argument, position: 1} = error} =
             Beamr.call(wasm, function, [arg])

    assert error.given === arg
    assert error.wanted == String.to_existing_atom(function)
  end

  defp signed(n, bits) do
    half = 2 ** (bits - 1)
    Integer.mod(n + half, 2 * half) - half
  end

  # The bits of a float, as the signed integer that the guest answers for them.
  defp bits64(x), do: signed(:binary.decode_unsigned(<<x::float-64>>), 64)

  defp negative_zero do
    <<zero::float-64>> = <<1::1, 0::63>>
    zero
  end

  describe "integers" do
    for {type, bits} <- [i32: 32, i64: 64] do
      @range {-(2 ** (bits - 1)), 2 ** bits - 1}

      test "#{type}: the whole signed and unsigned range goes in, signed comes out", %{wasm: wasm} do
        {low, high} = @range
        ends = [low, low + 1, -1, 0, 1, div(high, 2), div(high, 2) + 1, high - 1, high]
        for n <- ends, do: assert(same(wasm, "#{unquote(type)}", n) === signed(n, unquote(bits)))
      end

      test "#{type}: any integer in its range", %{wasm: wasm} do
        {low, high} = @range

        for_random_cases(200, fn ->
          n = random_integer(low, high)
          assert same(wasm, "#{unquote(type)}", n) === signed(n, unquote(bits))
        end)
      end

      test "#{type}: refuses integers outside its range", %{wasm: wasm} do
        {low, high} = @range

        for n <- [low - 1, high + 1, -(2 ** 64), 2 ** 64, -(10 ** 100), 10 ** 100] do
          refused(wasm, "#{unquote(type)}", n)
        end
      end

      test "#{type}: refuses what is no integer", %{wasm: wasm} do
        for term <- [nil, true, :nan, 1.0, "1", ~c"1", {1}, %{}, self(), make_ref()] do
          refused(wasm, "#{unquote(type)}", term)
        end
      end
    end
  end

  describe "floats" do
    test "f64: any finite float, bit by bit", %{wasm: wasm} do
      for_random_cases(300, fn ->
        bits = random_integer(0, 2 ** 64 - 1)

        with <<x::float-64>> <- <<bits::64>> do
          assert same(wasm, "f64_bits", x) === signed(bits, 64)
          assert bits64(same(wasm, "bits_f64", bits)) === signed(bits, 64)
        end
      end)
    end

    test "f32: any finite float, bit by bit", %{wasm: wasm} do
      for_random_cases(300, fn ->
        bits = random_integer(0, 2 ** 32 - 1)

        with <<x::float-32>> <- <<bits::32>> do
          assert same(wasm, "f32_bits", x) === signed(bits, 32)
          assert same(wasm, "bits_f32", bits) === x
        end
      end)
    end

    test "the smallest and the largest", %{wasm: wasm} do
      for x <- [4.9406564584124654e-324, 2.2250738585072014e-308, 1.7976931348623157e308] do
        assert same(wasm, "f64", x) === x
        assert same(wasm, "f64", -x) === -x
      end

      for x <- [1.401298464324817e-45, 1.1754943508222875e-38, 3.4028234663852886e38] do
        assert same(wasm, "f32", x) === x
        assert same(wasm, "f32", -x) === -x
      end
    end

    test "-0.0 keeps its sign both ways", %{wasm: wasm} do
      assert same(wasm, "f64_bits", negative_zero()) == -(2 ** 63)
      assert same(wasm, "f32_bits", negative_zero()) == -(2 ** 31)
      assert <<1::1, 0::63>> == <<same(wasm, "f64", negative_zero())::float-64>>
      assert <<1::1, 0::63>> == <<same(wasm, "f32", negative_zero())::float-64>>
    end

    test "f32 takes the nearest that it has", %{wasm: wasm} do
      assert same(wasm, "f32", 0.1) === 0.10000000149011612
      assert same(wasm, "f32", 16_777_217.0) === 16_777_216.0
      assert same(wasm, "f32", 16_777_219.0) === 16_777_220.0
      assert same(wasm, "f32", 1.0e-60) === 0.0
    end

    test "f32 refuses finite numbers that it would make infinite", %{wasm: wasm} do
      assert same(wasm, "f32", 3.4028235677973362e38) === 3.4028234663852886e38

      for x <- [3.4028235677973366e38, 1.0e300, 10 ** 39, 10 ** 400] do
        refused(wasm, "f32", x)
        refused(wasm, "f32", -x)
      end
    end

    test "integers are numbers too", %{wasm: wasm} do
      for type <- ["f32", "f64"], n <- [0, 1, -1, 2 ** 24, -(2 ** 62), 2 ** 63, 2 ** 100] do
        assert same(wasm, type, n) === n * 1.0
      end
    end

    test "f64: an integer of any size, to the nearest float", %{wasm: wasm} do
      assert same(wasm, "f64", 10 ** 30) === 1.0e30
      assert same(wasm, "f64", -(10 ** 308)) === -1.0e308
      assert same(wasm, "f64", 2 ** 53 + 1) === 9_007_199_254_740_992.0
      assert same(wasm, "f64", 2 ** 63 + 1025) === 9_223_372_036_854_777_856.0
      for n <- [10 ** 309, -(10 ** 400), 2 ** 1024], do: refused(wasm, "f64", n)
    end

    test "f64: an integer that is far too large holds no scheduler while it is refused",
         %{wasm: wasm} do
      huge = 2 ** 1_000_000
      before = :erlang.system_monitor(self(), long_schedule: 1_000)

      %{pid: pid} =
        task =
        Task.async(fn ->
          result = Beamr.call(wasm, "f64", [huge])
          # What the monitor has to say, it says when the process gives way.
          :erlang.yield()
          result
        end)

      assert {:error, %CallError{reason: :argument}} = Task.await(task, :infinity)
      :erlang.system_monitor(before)
      refute_received {:monitor, ^pid, :long_schedule, _info}
    end

    test "f32: an integer is rounded once, not by way of f64", %{wasm: wasm} do
      # Just above the middle between two f32; as an f64 it would be that middle.
      n = 2 ** 60 + 2 ** 36 + 1
      assert same(wasm, "f32", n) === (2 ** 60 + 2 ** 37) * 1.0
    end

    test "NaN and the infinities are atoms both ways", %{wasm: wasm} do
      for type <- ["f32", "f64"], atom <- [:nan, :infinity, :neg_infinity] do
        assert same(wasm, type, atom) === atom
      end

      assert same(wasm, "f32_bits", :infinity) == 0x7F800000
      assert same(wasm, "f32_bits", :neg_infinity) == signed(0xFF800000, 32)
      assert same(wasm, "f64_bits", :infinity) == 0x7FF0000000000000
      assert same(wasm, "f64_bits", :neg_infinity) == signed(0xFFF0000000000000, 64)
    end

    test "the NaN that goes in is a quiet one", %{wasm: wasm} do
      assert <<_::1, 0xFF::8, 1::1, _::22>> = <<same(wasm, "f32_bits", :nan)::32>>
      assert <<_::1, 0x7FF::11, 1::1, _::51>> = <<same(wasm, "f64_bits", :nan)::64>>
    end

    test "every NaN of the guest is :nan", %{wasm: wasm} do
      for bits <- [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF] do
        assert same(wasm, "bits_f32", bits) == :nan
      end

      for bits <- [0x7FF0000000000001, 0x7FF8000000000000, 0xFFFFFFFFFFFFFFFF] do
        assert same(wasm, "bits_f64", bits) == :nan
      end
    end

    test "refuse what is no number", %{wasm: wasm} do
      terms = [nil, true, :inf, :NaN, "1.0", ~c"1", {1.0}, <<1.0::float>>, %{}, self()]
      for type <- ["f32", "f64"], term <- terms, do: refused(wasm, type, term)
    end
  end

  describe "v128" do
    test "is 16 bytes, both ways", %{wasm: wasm} do
      for_random_cases(20, fn ->
        bytes = :rand.bytes(16)
        assert same(wasm, "v128", bytes) == bytes
      end)
    end

    test "has its lowest lane first", %{wasm: _wasm} do
      wasm =
        Beamr.instantiate!("""
        (module
          (func (export "make") (result v128) (v128.const i32x4 1 2 3 -1))
          (func (export "lane") (param v128) (result i32) (i32x4.extract_lane 1 (local.get 0))))
        """)

      lanes = <<1::little-32, 2::little-32, 3::little-32, -1::little-32>>
      assert Beamr.call(wasm, "make", []) == {:ok, [lanes]}
      assert Beamr.call(wasm, "lane", [lanes]) == {:ok, [2]}
    end

    test "refuses what is no binary of 16 bytes", %{wasm: wasm} do
      for term <- [
            nil,
            0,
            "",
            <<0::120>>,
            <<0::136>>,
            <<0::127>>,
            List.duplicate(0, 16),
            <<1::129>>
          ] do
        refused(wasm, "v128", term)
      end
    end
  end

  describe "funcref" do
    @functions """
    (module
      (type $unary (func (param i32) (result i32)))
      (elem declare func $double $seven)
      (func $double (type $unary) (i32.mul (local.get 0) (i32.const 2)))
      (func $seven (export "seven") (result i32) (i32.const 7))
      (func (export "double") (result funcref) (ref.func $double))
      (func (export "get_seven") (result funcref) (ref.func $seven))
      (func (export "none") (result funcref) (ref.null func))
      (func (export "is_null") (param funcref) (result i32) (ref.is_null (local.get 0)))
      (func (export "id") (param funcref) (result funcref) (local.get 0))
      (func (export "second") (param i32 funcref) (result funcref) (local.get 1))
      (func (export "some") (param (ref func)) (result funcref) (local.get 0))
      (func (export "unary") (param (ref null $unary)) (result i32)
        (call_ref $unary (i32.const 21) (local.get 0))))
    """

    setup do
      wasm = Beamr.instantiate!(@functions)
      [double] = Beamr.call!(wasm, "double", [])
      {:ok, wasm: wasm, double: double}
    end

    test "can be called", %{wasm: wasm, double: double} do
      assert Beamr.call(wasm, double, [4]) == {:ok, [8]}
      assert Beamr.call!(wasm, double, [5]) == [10]
    end

    test "is called with the same care as an export", %{wasm: wasm, double: double} do
      assert {:error, %CallError{reason: :arity, wanted: 1, given: 0}} =
               Beamr.call(wasm, double, [])

      assert {:error, %CallError{reason: :argument, position: 1, wanted: :i32}} =
               Beamr.call(wasm, double, [:x])
    end

    test "goes round and can still be called", %{wasm: wasm, double: double} do
      [again] = Beamr.call!(wasm, "id", [double])
      [again] = Beamr.call!(wasm, "second", [1, again])
      assert Beamr.call(wasm, again, [4]) == {:ok, [8]}
      assert Beamr.call(wasm, "is_null", [again]) == {:ok, [0]}
    end

    test "is nil for null, both ways", %{wasm: wasm} do
      assert Beamr.call(wasm, "none", []) == {:ok, [nil]}
      assert Beamr.call(wasm, "is_null", [nil]) == {:ok, [1]}
    end

    test "refuses nil where the type does", %{wasm: wasm, double: double} do
      assert {:error, %CallError{reason: :argument, position: 1, wanted: :funcref}} =
               Beamr.call(wasm, "some", [nil])

      assert {:ok, [_function]} = Beamr.call(wasm, "some", [double])
    end

    test "of another type than the parameter's is an argument of the wrong type", %{wasm: wasm} do
      [seven] = Beamr.call!(wasm, "get_seven", [])

      assert {:error, %CallError{reason: :argument, position: 1, wanted: :funcref, given: ^seven}} =
               Beamr.call(wasm, "unary", [seven])
    end

    test "of a parameter's own type is taken", %{wasm: wasm, double: double} do
      assert Beamr.call(wasm, "unary", [double]) == {:ok, [42]}
    end

    test "of another instance is refused, and which argument it was is said", %{double: double} do
      other = Beamr.instantiate!(@functions)

      assert {:error, %CallError{reason: :foreign_function, position: 2, given: ^double}} =
               Beamr.call(other, "second", [1, double])
    end

    test "of another instance cannot be called", %{double: double} do
      other = Beamr.instantiate!(@functions)

      assert {:error, %CallError{reason: :foreign_function, function: ^double}} =
               Beamr.call(other, double, [1])
    end

    test "a reference that is no function cannot be called", %{wasm: wasm} do
      assert {:error, %CallError{reason: :foreign_function}} = Beamr.call(wasm, make_ref(), [])

      for ref <- [wasm.ref, wasm.module.ref] do
        assert {:error, %CallError{reason: :foreign_function}} = Beamr.call(wasm, ref, [])
      end
    end

    test "refuses what is no function", %{wasm: wasm} do
      for term <- [0, "seven", :seven, fn -> 7 end, make_ref(), wasm.ref, self()] do
        assert {:error, %CallError{reason: :argument, position: 1, wanted: :funcref}} =
                 Beamr.call(wasm, "id", [term])
      end
    end

    test "of a closed instance is closed", %{wasm: wasm, double: double} do
      :ok = Beamr.close(wasm)
      assert {:error, %CallError{reason: :closed}} = Beamr.call(wasm, double, [1])
    end

    test "may be called by the import that it is given to" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "twice" (func $twice (param funcref i32) (result i32)))
            (elem declare func $add_3)
            (func $add_3 (param i32) (result i32) (i32.add (local.get 0) (i32.const 3)))
            (func (export "f") (result i32) (call $twice (ref.func $add_3) (i32.const 1))))
          """,
          imports: %{
            "env" => %{
              "twice" => fn wasm, function, n ->
                [n] = Beamr.call!(wasm, function, [n])
                [n] = Beamr.call!(wasm, function, [n])
                n
              end
            }
          }
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [7]}
    end

    test "may be an import that the guest hands out" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "double" (func $double (param i32) (result i32)))
            (elem declare func $double)
            (func (export "f") (result funcref) (ref.func $double)))
          """,
          imports: %{"env" => %{"double" => fn _wasm, n -> 2 * n end}}
        )

      [double] = Beamr.call!(wasm, "f", [])
      assert Beamr.call(wasm, double, [21]) == {:ok, [42]}
    end
  end

  describe "externref" do
    @references """
    (module
      (table $kept 100 externref)
      (func (export "id") (param externref) (result externref) (local.get 0))
      (func (export "is_null") (param externref) (result i32) (ref.is_null (local.get 0)))
      (func (export "some") (param (ref extern)) (result externref) (local.get 0))
      (func (export "keep") (param i32 externref)
        (table.set $kept (local.get 0) (local.get 1)))
      (func (export "kept") (param i32) (result externref) (table.get $kept (local.get 0))))
    """

    setup do
      {:ok, wasm: Beamr.instantiate!(@references)}
    end

    test "is any term, both ways", %{wasm: wasm} do
      <<_::1, bits::bitstring>> = <<1, 2, 3>>
      big_map = Map.new(1..10_000, &{&1, "#{&1}"})

      terms = [
        0,
        10 ** 100,
        1.5,
        :atom,
        false,
        "",
        :binary.copy("x", 100_000),
        bits,
        [1, [2 | 3]],
        {},
        big_map,
        self(),
        make_ref(),
        hd(Port.list()),
        &String.length/1,
        fn x -> {x, big_map} end,
        wasm
      ]

      for term <- terms, do: assert(same(wasm, "id", term) === term)
    end

    test "a function of Elixir comes back as one that runs", %{wasm: wasm} do
      m = 40
      assert same(wasm, "id", fn n -> n + m end).(2) == 42
    end

    test "is nil for null, both ways", %{wasm: wasm} do
      assert same(wasm, "id", nil) == nil
      assert same(wasm, "is_null", nil) == 1
      assert same(wasm, "is_null", false) == 0
      assert same(wasm, "kept", 5) == nil
    end

    test "is kept by the guest after its process has died", %{wasm: wasm} do
      for n <- 0..99 do
        Task.await(Task.async(fn -> Beamr.call!(wasm, "keep", [n, %{n => "term #{n}"}]) end))
      end

      # Enough references that the guest's own collector has something to do.
      for n <- 1..10_000, do: Beamr.call!(wasm, "id", [{n}])
      :erlang.garbage_collect()
      for n <- 0..99, do: assert(same(wasm, "kept", n) == %{n => "term #{n}"})
    end

    test "is passed on to imports and nested calls" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "wrap" (func $wrap (param externref) (result externref)))
            (func (export "id") (param externref) (result externref) (local.get 0))
            (func (export "f") (param externref) (result externref)
              (call $wrap (call $wrap (local.get 0)))))
          """,
          imports: %{
            "env" => %{"wrap" => fn wasm, term -> {:wrapped, same(wasm, "id", term)} end}
          }
        )

      assert same(wasm, "f", self()) == {:wrapped, {:wrapped, self()}}
    end
  end

  describe "references that no term stands for" do
    test "take nil, and nothing else" do
      wasm =
        Beamr.instantiate!("""
        (module
          (func (export "any") (param anyref) (result i32) (ref.is_null (local.get 0)))
          (func (export "exn") (param exnref) (result i32) (ref.is_null (local.get 0))))
        """)

      for {name, type} <- [{"any", :anyref}, {"exn", :exnref}] do
        assert Beamr.call(wasm, name, [nil]) == {:ok, [1]}

        for term <- [0, :other, make_ref()] do
          assert {:error, %CallError{reason: :argument, wanted: ^type, given: ^term}} =
                   Beamr.call(wasm, name, [term])
        end
      end
    end

    test "come back as nil for null, and as :other" do
      wasm =
        Beamr.instantiate!("""
        (module (func (export "f") (result anyref i31ref) (ref.null any) (ref.i31 (i32.const 1))))
        """)

      assert Beamr.call(wasm, "f", []) == {:ok, [nil, :other]}
    end
  end

  # Some signatures are called in a quicker way than others, and some host functions are.
  describe "every signature" do
    @shapes [
      [],
      [:i32],
      [:i32, :i32],
      [:i32, :i32, :i32],
      [:i32, :i32, :i32, :i32],
      [:i32, :i32, :i32, :i32, :i32],
      [:i64],
      [:i64, :i64],
      [:f64],
      [:f64, :f64],
      [:f32],
      [:i32, :i64],
      [:f64, :i32],
      [:externref],
      [:i32, :externref]
    ]
    @results [[], [:i32], [:i64], [:f32], [:f64], [:externref], [:i32, :f64]]

    # An import, and an export that calls it with what it is given and returns what it returns.
    defp relay(params, results) do
      list = fn keyword, types -> Enum.map(types, &"(#{keyword} #{&1})") end
      gets = for {_type, n} <- Enum.with_index(params), do: "(local.get #{n})"
      type = list.("param", params) ++ list.("result", results)

      """
      (module
        (import "env" "f" (func $f #{type}))
        (func (export "f") #{type} (call $f #{gets})))
      """
    end

    defp value(:i32, n), do: -n
    defp value(:i64, n), do: -(2 ** 40) - n
    defp value(:f32, n), do: n + 0.5
    defp value(:f64, n), do: n + 0.1
    defp value(:externref, n), do: {:term, n}

    defp values(types), do: for({type, n} <- Enum.with_index(types, 1), do: value(type, n))

    for params <- @shapes do
      test "takes #{inspect(params)}, and returns whatever it does" do
        params = unquote(params)

        for results <- @results do
          test = self()

          answer =
            case values(results) do
              [] -> :whatever
              [one] -> one
              several -> several
            end

          function = fn _wasm, args ->
            send(test, {:args, args})
            answer
          end

          imports = %{"env" => %{"f" => {:list, function}}}
          wasm = Beamr.instantiate!(relay(params, results), imports: imports)

          for _ <- 1..3 do
            assert Beamr.call(wasm, "f", values(params)) == {:ok, values(results)}
            assert_received {:args, args}
            assert args === values(params)
          end
        end
      end
    end

    test "is itself only, where it is declared together with others" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (rec (type $f (func (param i32) (result i32))) (type (func)))
            (type $g (func (param i32) (result i32)))
            (import "env" "f" (func $f (type $f)))
            (import "env" "g" (func $g (type $g)))
            (table funcref (elem $f $g))
            (func (export "f") (param i32 i32) (result i32)
              (call_indirect (type $f) (local.get 0) (local.get 1)))
            (func (export "g") (param i32 i32) (result i32)
              (call_indirect (type $g) (local.get 0) (local.get 1))))
          """,
          imports: %{"env" => %{"f" => fn _wasm, n -> n + 1 end, "g" => fn _wasm, n -> n + 2 end}}
        )

      assert Beamr.call(wasm, "f", [1, 0]) == {:ok, [2]}
      assert Beamr.call(wasm, "g", [1, 1]) == {:ok, [3]}

      for {name, n} <- [{"f", 1}, {"g", 0}] do
        assert {:error, %Beamr.Trap{reason: :bad_signature}} = Beamr.call(wasm, name, [1, n])
      end
    end

    test "may be called again inside itself, and after a trap there" do
      fibonacci = fn
        _wasm, 0 -> 0
        _wasm, 1 -> 1
        wasm, n -> hd(Beamr.call!(wasm, "f", [n - 1])) + hd(Beamr.call!(wasm, "f", [n - 2]))
      end

      imports = %{"env" => %{"f" => fibonacci}}
      wasm = Beamr.instantiate!(relay([:i32], [:i32]), imports: imports)
      assert Beamr.call(wasm, "f", [10]) == {:ok, [55]}

      raising = fn
        _wasm, 0 -> raise "the end"
        wasm, n -> hd(Beamr.call!(wasm, "f", [n - 1]))
      end

      imports = %{"env" => %{"f" => raising}}
      wasm = Beamr.instantiate!(relay([:i32], [:i32]), imports: imports)

      for n <- [0, 5, 0] do
        assert {:error, %Beamr.ImportError{kind: :error}} = Beamr.call(wasm, "f", [n])
      end
    end
  end
end

defmodule Beamr.ValueReleaseTest do
  # Counts what is alive on the node, so that nothing else may run meanwhile.
  use Beamr.Case, async: false

  alias Beamr.Native

  test "a term that an import was given is let go of, even if it holds the instance" do
    module =
      Beamr.compile!("""
      (module
        (import "env" "f" (func $f (param externref) (result externref)))
        (func (export "f") (param externref) (result externref) (call $f (local.get 0))))
      """)

    terms = fn -> Native.count_live()[:terms] end
    before = terms.()

    spawn_monitor(fn ->
      for function <- [fn _wasm, term -> term end, fn _wasm, _term -> raise "no" end],
          _ <- 1..50 do
        wasm = Beamr.instantiate!(module, imports: %{"env" => %{"f" => function}})
        Beamr.call(wasm, "f", [{:holds, wasm}])
        Beamr.close(wasm)
      end
    end)

    assert_receive {:DOWN, _monitor, :process, _pid, :normal}, 10_000
    eventually(fn -> terms.() <= before end)
  end
end
