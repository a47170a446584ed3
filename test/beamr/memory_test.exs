defmodule Beamr.MemoryTest do
  # Numbers, text and blocks in linear memory, and its growth.
  use Beamr.Case, async: true

  alias Beamr.MemoryError

  @page 65_536
  @mib 1_048_576

  @ranges [
    i8: {-128, 127},
    u8: {0, 255},
    i16: {-32_768, 32_767},
    u16: {0, 65_535},
    i32: {-2_147_483_648, 2_147_483_647},
    u32: {0, 4_294_967_295},
    i64: {-9_223_372_036_854_775_808, 9_223_372_036_854_775_807},
    u64: {0, 18_446_744_073_709_551_615}
  ]
  @sizes [i8: 1, u8: 1, i16: 2, u16: 2, i32: 4, u32: 4, i64: 8, u64: 8, f32: 4, f64: 8]
  @types Keyword.keys(@sizes)
  @huge [@page + 1, 2 ** 32, 2 ** 63, 2 ** 64 - 1, 2 ** 64, 2 ** 64 + 1, 10 ** 100]

  defp pages(n), do: Beamr.instantiate!(~s|(module (memory (export "memory") #{n}))|)

  defp read(type, wasm, offset, opts \\ []) do
    apply(Beamr.IO, :"read_#{type}", [wasm, offset, opts])
  end

  defp write(type, wasm, offset, value, opts \\ []) do
    apply(Beamr.IO, :"write_#{type}", [wasm, offset, value, opts])
  end

  # What a number is as bytes, and what those bytes read back as.
  defp to_bytes(type, value) when type in [:f32, :f64] do
    bits = @sizes[type] * 8

    case {value, bits} do
      {:infinity, 32} -> <<0x7F80_0000::little-32>>
      {:neg_infinity, 32} -> <<0xFF80_0000::little-32>>
      {:nan, 32} -> <<0x7FC0_0000::little-32>>
      {:infinity, 64} -> <<0x7FF0_0000_0000_0000::little-64>>
      {:neg_infinity, 64} -> <<0xFFF0_0000_0000_0000::little-64>>
      {:nan, 64} -> <<0x7FF8_0000_0000_0000::little-64>>
      {value, bits} -> <<value::float-little-size(bits)>>
    end
  end

  defp to_bytes(type, value), do: <<value::little-size(@sizes[type])-unit(8)>>

  defp from_bytes(type, bytes) when type in [:f32, :f64] do
    case bytes do
      <<x::float-little-32>> -> x
      <<x::float-little-64>> -> x
      <<0x7F80_0000::little-32>> -> :infinity
      <<0xFF80_0000::little-32>> -> :neg_infinity
      <<0x7FF0_0000_0000_0000::little-64>> -> :infinity
      <<0xFFF0_0000_0000_0000::little-64>> -> :neg_infinity
      _ -> :nan
    end
  end

  defp from_bytes(type, bytes) do
    case Atom.to_string(type) do
      "i" <> _bits -> :binary.decode_unsigned(bytes, :little) |> signed(bit_size(bytes))
      "u" <> _bits -> :binary.decode_unsigned(bytes, :little)
    end
  end

  defp signed(n, bits), do: if(n >= 2 ** (bits - 1), do: n - 2 ** bits, else: n)

  defp random_value(type) when type in [:f32, :f64] do
    case :rand.uniform(8) do
      1 -> Enum.random([:nan, :infinity, :neg_infinity])
      2 -> Enum.random([0.0, -0.0])
      3 -> :rand.uniform(2_000) - 1_000
      _ -> (:rand.uniform() - 0.5) * 2 ** (:rand.uniform(200) - 100)
    end
  end

  defp random_value(type) do
    {low, high} = @ranges[type]
    random_integer(low, high)
  end

  describe "one number" do
    for {type, size} <- @sizes do
      test "#{type} takes #{size} bytes, little-endian, wherever it lies" do
        wasm = pages(1)

        for offset <- [0, 1, 7, @page - unquote(size)] do
          value = random_value(unquote(type))
          assert write(unquote(type), wasm, offset, value) == :ok
          bytes = to_bytes(unquote(type), value)
          assert Beamr.IO.read(wasm, offset, unquote(size)) == {:ok, bytes}
          assert read(unquote(type), wasm, offset) == {:ok, from_bytes(unquote(type), bytes)}
        end
      end

      test "#{type} outside the memory is an error that says all numbers, and writes nothing" do
        wasm = pages(1)
        :ok = Beamr.IO.fill(wasm, @page - 8, 0xAA, 8)

        for offset <- [@page - unquote(size) + 1, @page | @huge] do
          for result <- [
                read(unquote(type), wasm, offset),
                write(unquote(type), wasm, offset, 1)
              ] do
            assert {:error,
                    %MemoryError{
                      reason: :out_of_bounds,
                      offset: ^offset,
                      length: unquote(size),
                      size: @page
                    }} = result
          end
        end

        assert Beamr.IO.read(wasm, @page - 8, 8) == {:ok, :binary.copy(<<0xAA>>, 8)}
      end

      test "#{type} against a model: what is written is there, and nothing else changes" do
        for_random_cases(20, fn ->
          wasm = pages(1)

          model =
            Enum.reduce(1..50, :binary.copy(<<0>>, @page), fn _, model ->
              offset = random_integer(0, @page - unquote(size))
              value = random_value(unquote(type))
              bytes = to_bytes(unquote(type), value)
              assert write(unquote(type), wasm, offset, value) == :ok
              model = overwrite(model, offset, bytes)
              at = random_integer(0, @page - unquote(size))
              expected = from_bytes(unquote(type), binary_part(model, at, unquote(size)))
              assert read(unquote(type), wasm, at) == {:ok, expected}
              model
            end)

          assert Beamr.IO.read(wasm, 0, @page) == {:ok, model}
        end)
      end

      test "#{type} reads any bytes" do
        for_random_cases(20, fn ->
          wasm = pages(1)
          bytes = :rand.bytes(unquote(size))
          :ok = Beamr.IO.write(wasm, 3, bytes)
          assert read(unquote(type), wasm, 3) == {:ok, from_bytes(unquote(type), bytes)}
        end)
      end

      test "read_#{type}!/2 and write_#{type}!/3 answer the value, or raise the error" do
        wasm = pages(1)
        assert apply(Beamr.IO, :"write_#{unquote(type)}!", [wasm, 0, 1]) == :ok
        assert apply(Beamr.IO, :"read_#{unquote(type)}!", [wasm, 0]) == 1

        for {name, args} <- [write: [@page, 1], read: [@page]] do
          assert_raise MemoryError, fn ->
            apply(Beamr.IO, :"#{name}_#{unquote(type)}!", [wasm | args])
          end
        end
      end

      test "#{type} refuses offsets and values of no right kind" do
        wasm = pages(1)

        for offset <- [-1, -(2 ** 70), 1.0, nil, :a] do
          assert_raise FunctionClauseError, fn -> read(unquote(type), wasm, offset) end
          assert_raise FunctionClauseError, fn -> write(unquote(type), wasm, offset, 1) end
        end

        for value <- [nil, :one, "1", [1], {}] do
          assert_raise FunctionClauseError, fn -> write(unquote(type), wasm, 0, value) end
        end

        assert_raise FunctionClauseError, fn -> read(unquote(type), "no guest", 0) end
        assert_raise ArgumentError, fn -> read(unquote(type), wasm, 0, wrap: true) end
        assert_raise ArgumentError, fn -> write(unquote(type), wasm, 0, 1, wrap: 1) end
        assert_raise ArgumentError, fn -> write(unquote(type), wasm, 0, 1, memory: 1) end
      end
    end

    for {type, {low, high}} <- @ranges do
      test "#{type} holds #{low} to #{high}, and refuses all others with the range" do
        wasm = pages(1)

        for value <- [unquote(low), unquote(high)] do
          assert write(unquote(type), wasm, 8, value) == :ok
          assert read(unquote(type), wasm, 8) == {:ok, value}
        end

        for value <- [unquote(low) - 1, unquote(high) + 1, 2 ** 64, -(2 ** 64), 10 ** 100] do
          assert {:error, error} = write(unquote(type), wasm, 8, value)

          assert %MemoryError{
                   reason: :value_out_of_range,
                   type: unquote(type),
                   given: ^value,
                   offset: 8,
                   length: unquote(@sizes[type])
                 } = error

          assert Exception.message(error) =~ "#{unquote(low)} to #{unquote(high)}"
        end

        assert read(unquote(type), wasm, 8) == {:ok, unquote(high)}
      end

      test "#{type} wraps any integer where that is asked for" do
        wasm = pages(1)
        bits = unquote(@sizes[type] * 8)

        for n <- [high() + 1, -1, 2 ** 64 + 5, -(2 ** 64) - 5, 2 ** 63, -(2 ** 63) - 1] do
          wraps(unquote(type), wasm, n, bits)
        end

        # The external form of longer ones is another.
        wraps(unquote(type), wasm, 2 ** 5000 + 12_345, bits)
        wraps(unquote(type), wasm, -(2 ** 5000) - 12_345, bits)

        for_random_cases(50, fn ->
          n = random_integer(-(2 ** 80), 2 ** 80)
          wraps(unquote(type), wasm, n, bits)
        end)
      end
    end

    defp high, do: 2 ** 32

    defp wraps(type, wasm, n, bits) do
      assert write(type, wasm, 0, n, wrap: true) == :ok
      assert read(type, wasm, 0) == {:ok, from_bytes(type, <<n::little-size(bits)>>)}
    end

    test "i32 outside its range wraps modulo 2^32, i64 modulo 2^64" do
      wasm = pages(1)
      assert Beamr.IO.write_i32(wasm, 0, 2 ** 32 + 7, wrap: true) == :ok
      assert Beamr.IO.read_i32(wasm, 0) == {:ok, 7}
      assert Beamr.IO.write_i64(wasm, 0, 2 ** 64 - 1, wrap: true) == :ok
      assert Beamr.IO.read_i64(wasm, 0) == {:ok, -1}
    end

    test "f32 rounds to nearest: 3.14 is 3.140000104904175" do
      wasm = pages(1)
      assert Beamr.IO.write_f32(wasm, 0, 3.14) == :ok
      assert Beamr.IO.read_f32(wasm, 0) == {:ok, 3.140000104904175}
    end

    test "f32 that would be infinite is refused, the largest is not" do
      wasm = pages(1)
      assert Beamr.IO.write_f32(wasm, 0, 3.4028234663852886e38) == :ok

      for value <- [3.5e38, -3.5e38, 10 ** 39] do
        assert {:error, %MemoryError{reason: :value_out_of_range, type: :f32, given: ^value}} =
                 Beamr.IO.write_f32(wasm, 0, value, wrap: true)
      end

      assert {:error, %MemoryError{reason: :value_out_of_range, type: :f64}} =
               Beamr.IO.write_f64(wasm, 0, 10 ** 309)

      assert Beamr.IO.read_f32(wasm, 0) == {:ok, 3.4028234663852886e38}
    end

    test "-0.0, the infinities and NaN survive a round trip" do
      wasm = pages(1)

      for type <- [:f32, :f64] do
        for value <- [:infinity, :neg_infinity, :nan] do
          assert write(type, wasm, 0, value) == :ok
          assert read(type, wasm, 0) == {:ok, value}
        end

        assert write(type, wasm, 0, -0.0) == :ok
        assert {:ok, zero} = read(type, wasm, 0)
        assert <<1::1, 0::63>> = <<zero::float>>
      end
    end

    test "is what the guest has there" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "get") (param i32) (result i64) (i64.load (local.get 0)))
          (func (export "put") (param i32 f32) (f32.store (local.get 0) (local.get 1))))
        """)

      :ok = Beamr.IO.write_i64(wasm, 3, -5)
      assert Beamr.call(wasm, "get", [3]) == {:ok, [-5]}
      {:ok, []} = Beamr.call(wasm, "put", [9, 0.5])
      assert Beamr.IO.read_f32(wasm, 9) == {:ok, 0.5}
    end
  end

  describe "arrays" do
    for {type, size} <- @sizes do
      test "of #{type} against a model" do
        for_random_cases(20, fn ->
          wasm = pages(1)
          count = random_integer(0, 50)
          values = for _ <- 1..count//1, do: random_value(unquote(type))
          packed = for value <- values, into: "", do: to_bytes(unquote(type), value)
          offset = random_integer(0, @page - byte_size(packed))

          expected =
            for <<bytes::binary-size(unquote(size)) <- packed>>,
              do: from_bytes(unquote(type), bytes)

          model = overwrite(:binary.copy(<<0>>, @page), offset, packed)

          for given <- [values, packed] do
            :ok = Beamr.IO.fill(wasm, 0, 0, @page)
            assert Beamr.IO.write_array(wasm, offset, unquote(type), given) == :ok
            assert Beamr.IO.read(wasm, 0, @page) == {:ok, model}
          end

          args = [wasm, offset, unquote(type), count]
          assert apply(Beamr.IO, :read_array, args) == {:ok, expected}
          assert apply(Beamr.IO, :read_array, args ++ [[as: :binary]]) == {:ok, packed}
          assert apply(Beamr.IO, :read_array, args ++ [[as: :list]]) == {:ok, expected}
        end)
      end
    end

    test "up to the very end, and not past it" do
      wasm = pages(1)
      assert Beamr.IO.read_array(wasm, @page, :f64, 0) == {:ok, []}
      assert Beamr.IO.write_array(wasm, @page, :f64, []) == :ok
      assert Beamr.IO.write_array(wasm, @page, :f64, "") == :ok
      assert Beamr.IO.write_array(wasm, @page - 16, :f64, [1, 2]) == :ok
      assert Beamr.IO.read_array(wasm, @page - 16, :f64, 2) == {:ok, [1.0, 2.0]}

      for result <- [
            Beamr.IO.read_array(wasm, @page - 16, :f64, 3),
            Beamr.IO.read_array(wasm, @page - 16, :f64, 3, as: :binary),
            Beamr.IO.write_array(wasm, @page - 16, :f64, [3, 4, 5]),
            Beamr.IO.write_array(wasm, @page - 16, :f64, <<0::192>>)
          ] do
        assert {:error,
                %MemoryError{reason: :out_of_bounds, offset: 65_520, length: 24, size: @page}} =
                 result
      end

      assert Beamr.IO.read_array(wasm, @page - 16, :f64, 2) == {:ok, [1.0, 2.0]}
    end

    test "of counts that no memory reaches are out of bounds" do
      wasm = pages(1)

      for count <- @huge ++ [2 ** 61, 2 ** 62], as <- [:list, :binary] do
        assert {:error, %MemoryError{reason: :out_of_bounds, length: length}} =
                 Beamr.IO.read_array(wasm, 8, :f64, count, as: as)

        assert length == 8 * count
      end
    end

    test "are written all or nothing: a value that does not fit is named" do
      wasm = pages(1)

      assert {:error, error} = Beamr.IO.write_array(wasm, 100, :i16, [1, 2, 40_000, 4])

      assert %MemoryError{
               reason: :value_out_of_range,
               type: :i16,
               given: 40_000,
               index: 2,
               offset: 104,
               length: 2
             } = error

      assert Beamr.IO.read_array(wasm, 100, :i16, 4) == {:ok, [0, 0, 0, 0]}
      assert Beamr.IO.write_array(wasm, 100, :i16, [1, 2, 40_000, 4], wrap: true) == :ok
      assert Beamr.IO.read_array(wasm, 100, :i16, 4) == {:ok, [1, 2, -25_536, 4]}
    end

    test "raise for what is no list of numbers, and for part of one" do
      wasm = pages(1)

      for values <- [[1, :two], [1 | 2], ["1"], [nil], [1.5]] do
        message = "not a list of numbers for i32: #{inspect(values)}"

        assert_raise ArgumentError, message, fn ->
          Beamr.IO.write_array(wasm, 0, :i32, values)
        end
      end

      assert_raise ArgumentError, "7 byte(s) are no whole number of i32", fn ->
        Beamr.IO.write_array(wasm, 0, :i32, "7 bytes")
      end

      assert Beamr.IO.read_i32(wasm, 0) == {:ok, 0}
      assert_raise ArgumentError, fn -> Beamr.IO.read_array(wasm, 0, :i32, 1, as: :tuple) end
      assert_raise ArgumentError, fn -> Beamr.IO.read_array(wasm, 0, :i32, 1, wrap: true) end
    end

    test "refuse what is no type, offset, count or list" do
      wasm = pages(1)

      for args <- [[0, :i128, 1], [-1, :i8, 1], [0, :i8, -1], [0, "i8", 1]] do
        assert_raise FunctionClauseError, fn -> apply(Beamr.IO, :read_array, [wasm | args]) end
      end

      for args <- [[0, :i128, []], [-1, :i8, []], [0, :i8, :a], [0, :i8, 1]] do
        assert_raise FunctionClauseError, fn -> apply(Beamr.IO, :write_array, [wasm | args]) end
      end
    end

    test "of a million numbers" do
      wasm = pages(123)
      list = for n <- 1..1_000_000, do: n * 0.5
      packed = for x <- list, into: "", do: <<x::float-little-64>>
      assert Beamr.IO.write_array(wasm, 8, :f64, list) == :ok
      assert Beamr.IO.read_array(wasm, 8, :f64, 1_000_000, as: :binary) == {:ok, packed}
      assert Beamr.IO.write_array(wasm, 16, :f64, packed) == :ok
      assert Beamr.IO.read_array(wasm, 16, :f64, 1_000_000) == {:ok, list}

      for last <- [:nope, 2 ** 2000] do
        list = list ++ [last]

        try do
          assert {:error, %MemoryError{reason: :value_out_of_range, index: 1_000_000}} =
                   Beamr.IO.write_array(wasm, 0, :f64, list)
        rescue
          ArgumentError -> assert last == :nope
        end
      end

      assert Beamr.IO.read(wasm, 0, 16) == {:ok, <<0::64, 0.5::float-little-64>>}
    end

    test "read_array!/4 and write_array!/4 answer the value, or raise the error" do
      wasm = pages(1)
      assert Beamr.IO.write_array!(wasm, 0, :u8, [1]) == :ok
      assert Beamr.IO.read_array!(wasm, 0, :u8, 1) == [1]
      assert_raise MemoryError, fn -> Beamr.IO.write_array!(wasm, @page, :u8, [1]) end
      assert_raise MemoryError, fn -> Beamr.IO.read_array!(wasm, @page, :u8, 1) end
    end
  end

  describe "many places" do
    test "against a model" do
      for_random_cases(30, fn ->
        wasm = pages(1)
        writes = for _ <- 1..random_integer(1, 30), do: random_write()

        model =
          Enum.reduce(writes, :binary.copy(<<0>>, @page), fn
            {offset, type, value}, model -> overwrite(model, offset, to_bytes(type, value))
            {offset, data}, model -> overwrite(model, offset, IO.iodata_to_binary(data))
          end)

        assert Beamr.IO.write_many(wasm, writes) == :ok
        assert Beamr.IO.read(wasm, 0, @page) == {:ok, model}

        places =
          Enum.map(writes, fn
            {offset, type, _value} -> {offset, type}
            {offset, data} -> {offset, IO.iodata_length(data)}
          end)

        expected =
          Enum.map(places, fn
            {offset, length} when is_integer(length) -> binary_part(model, offset, length)
            {offset, type} -> from_bytes(type, binary_part(model, offset, @sizes[type]))
          end)

        assert Beamr.IO.read_many(wasm, places) == {:ok, expected}
      end)
    end

    defp random_write do
      case :rand.uniform(3) do
        1 ->
          data = Enum.random(["", "some", ["io", [?d | "ata"]], :rand.bytes(100)])
          {random_integer(0, @page - 100), data}

        _ ->
          type = Enum.random(@types)
          {random_integer(0, @page - 8), type, random_value(type)}
      end
    end

    test "none" do
      assert Beamr.IO.read_many(pages(1), []) == {:ok, []}
      assert Beamr.IO.write_many(pages(1), []) == :ok
    end

    test "are written all or nothing: the place that is refused is named" do
      wasm = pages(1)
      first = {0, :i32, 1}

      for {write, expected} <- [
            {{@page, "x"}, %{reason: :out_of_bounds, offset: @page, length: 1, size: @page}},
            {{@page - 3, :i32, 1}, %{reason: :out_of_bounds, offset: @page - 3, length: 4}},
            {{2 ** 64, ["x", "y"]}, %{reason: :out_of_bounds, offset: 2 ** 64, length: 2}},
            {{4, :u8, 256}, %{reason: :value_out_of_range, type: :u8, given: 256, offset: 4}}
          ] do
        assert {:error, %MemoryError{index: 1} = error} =
                 Beamr.IO.write_many(wasm, [first, write, first])

        assert Map.take(error, Map.keys(expected)) == expected
      end

      assert Beamr.IO.read_i32(wasm, 0) == {:ok, 0}
      assert Beamr.IO.write_many(wasm, [first, {4, :u8, 256}], wrap: true) == :ok
      assert Beamr.IO.read_many(wasm, [{0, :i32}, {4, :u8}]) == {:ok, [1, 0]}
    end

    test "are read within bounds only" do
      wasm = pages(1)

      for {place, length} <- [
            {{@page, 1}, 1},
            {{@page - 7, :f64}, 8},
            {{0, 2 ** 64}, 2 ** 64},
            {{2 ** 70, 0}, 0}
          ] do
        {offset, _wanted} = place

        assert {:error,
                %MemoryError{
                  reason: :out_of_bounds,
                  index: 2,
                  offset: ^offset,
                  length: ^length,
                  size: @page
                }} = Beamr.IO.read_many(wasm, [{0, :i8}, {0, 3}, place])
      end
    end

    test "raise for lists of anything else" do
      wasm = pages(1)

      for places <- [
            [0],
            [{0}],
            [{0, :i128}],
            [{-1, :i8}],
            [{0, -1}],
            [{0, -(2 ** 70)}],
            [{1.0, :i8}],
            [{0, 1} | 2],
            [{0, "1"}]
          ] do
        message = "not a list of {offset, type} and {offset, length}: #{inspect(places)}"
        assert_raise ArgumentError, message, fn -> Beamr.IO.read_many(wasm, places) end
      end

      for writes <- [
            [0],
            [{0}],
            [{0, :i128, 1}],
            [{0, :i8, :one}],
            [{-1, :i8, 1}],
            [{[1], :i8, 300}],
            [{-1, :i8, 300}],
            [{-(2 ** 70), "x"}],
            [{0, :x}],
            [{0, ["x", :y]}],
            [{0, "x"} | 2]
          ] do
        message = "not a list of {offset, type, value} and {offset, iodata}: #{inspect(writes)}"
        assert_raise ArgumentError, message, fn -> Beamr.IO.write_many(wasm, writes) end
      end

      assert_raise FunctionClauseError, fn -> Beamr.IO.read_many(wasm, untyped({0, 1})) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.write_many(wasm, untyped({0, "x"})) end
    end

    test "of great number and of great length" do
      wasm = pages(64)
      writes = for n <- 0..99_999, do: {8 * n, :u32, n}
      assert Beamr.IO.write_many(wasm, writes) == :ok
      places = for n <- 0..99_999, do: {8 * n, :u32}
      assert Beamr.IO.read_many(wasm, places) == {:ok, Enum.to_list(0..99_999)}

      long = :binary.copy("x", 2 * @mib)
      assert Beamr.IO.write_many(wasm, [{0, long}, {3, "abc"}]) == :ok
      assert {:ok, [one, two]} = Beamr.IO.read_many(wasm, [{0, 2 * @mib}, {6, 2 * @mib}])
      assert binary_part(one, 0, 8) == "xxxabcxx"
      assert byte_size(two) == 2 * @mib
    end

    test "read_many!/2 and write_many!/2 answer the value, or raise the error" do
      wasm = pages(1)
      assert Beamr.IO.write_many!(wasm, [{0, :i8, 1}]) == :ok
      assert Beamr.IO.read_many!(wasm, [{0, :i8}]) == [1]
      assert_raise MemoryError, fn -> Beamr.IO.write_many!(wasm, [{@page, :i8, 1}]) end
      assert_raise MemoryError, fn -> Beamr.IO.read_many!(wasm, [{@page, :i8}]) end
    end
  end

  describe "text of known length" do
    test "is UTF-8 with no NUL and no prefix" do
      wasm = pages(1)
      :ok = Beamr.IO.fill(wasm, 0, 0xAA, 16)
      assert Beamr.IO.write_utf8(wasm, 2, "née") == {:ok, 4}
      assert Beamr.IO.read(wasm, 0, 8) == {:ok, <<0xAA, 0xAA, "née", 0xAA, 0xAA>>}
      assert Beamr.IO.read_utf8(wasm, 2, 4) == {:ok, "née"}
      assert Beamr.IO.write_utf8(wasm, @page, "") == {:ok, 0}
      assert Beamr.IO.read_utf8(wasm, @page, 0) == {:ok, ""}
    end

    test "bytes that are no UTF-8 become U+FFFD, one for each maximal part" do
      wasm = pages(1)

      # The examples of the Unicode Standard, chapter 3.9, and an end inside a character.
      for {bytes, text} <- [
            {<<0xC0, 0xAF, 0xE0, 0x80, 0xBF, 0xF0, 0x81, 0x82, 0x41>>, "��������A"},
            {<<0xED, 0xA0, 0x80, 0xED, 0xBF, 0xBF, 0xED, 0xAF, 0x41>>, "��������A"},
            {<<0xF4, 0x91, 0x92, 0x93, 0xFF, 0x41, 0x80, 0xBF, 0x42>>, "�����A��B"},
            {<<0xE1, 0x80, 0xE2, 0xF0, 0x91, 0x92, 0xF1, 0xBF, 0x41>>, "����A"},
            {<<"a", 0xE2, 0x82>>, "a�"},
            {"\0", "\0"}
          ] do
        :ok = Beamr.IO.write(wasm, 10, bytes)
        assert Beamr.IO.read_utf8(wasm, 10, byte_size(bytes)) == {:ok, text}
        assert Beamr.IO.write_utf8(wasm, 100, bytes) == {:ok, byte_size(text)}
        assert Beamr.IO.read(wasm, 100, byte_size(text)) == {:ok, text}
      end
    end

    test "or are an error that says where" do
      wasm = pages(1)
      :ok = Beamr.IO.write(wasm, 10, <<"caf", 0xC3, 0x28>>)

      assert {:error, %MemoryError{reason: :invalid_utf8, offset: 13}} =
               Beamr.IO.read_utf8(wasm, 10, 5, invalid: :error)

      assert Beamr.IO.read_utf8(wasm, 10, 3, invalid: :error) == {:ok, "caf"}

      assert {:error, %MemoryError{reason: :invalid_utf8, offset: 22}} =
               Beamr.IO.write_utf8(wasm, 20, <<"ab", 0xFF>>, invalid: :error)

      assert Beamr.IO.read(wasm, 20, 3) == {:ok, <<0, 0, 0>>}
      assert Beamr.IO.write_utf8(wasm, 20, "ab", invalid: :error) == {:ok, 2}
    end

    test "any bytes become valid text, and valid text stays as it is" do
      for_random_cases(100, fn ->
        wasm = pages(1)
        parts = ["a", "é", "€", "😀", <<0xFF>>, <<0xC3>>, <<0xE2, 0x82>>, <<0x80>>, :rand.bytes(3)]
        bytes = for _ <- 1..20, into: "", do: Enum.random(parts)
        :ok = Beamr.IO.write(wasm, 0, bytes)
        {:ok, text} = Beamr.IO.read_utf8(wasm, 0, byte_size(bytes))
        assert String.valid?(text)
        assert text == bytes == String.valid?(bytes)
        assert Beamr.IO.write_utf8(wasm, 0, text, invalid: :error) == {:ok, byte_size(text)}
      end)
    end

    test "outside the memory is an error that says all numbers, and writes nothing" do
      wasm = pages(1)

      assert {:error,
              %MemoryError{reason: :out_of_bounds, offset: 65_533, length: 4, size: @page}} =
               Beamr.IO.write_utf8(wasm, @page - 3, "café" |> String.slice(1..3))

      # What would be written is longer than what was given.
      assert {:error, %MemoryError{reason: :out_of_bounds, length: 3}} =
               Beamr.IO.write_utf8(wasm, @page - 2, <<0xFF>>)

      assert Beamr.IO.read(wasm, @page - 3, 3) == {:ok, <<0, 0, 0>>}

      for {offset, length} <- [{@page, 1}, {0, 2 ** 64}, {2 ** 64, 0}] do
        assert {:error, %MemoryError{reason: :out_of_bounds, offset: ^offset, length: ^length}} =
                 Beamr.IO.read_utf8(wasm, offset, length)
      end
    end

    test "of more than a MiB" do
      wasm = pages(64)
      text = :binary.copy("é", @mib)
      assert Beamr.IO.write_utf8(wasm, 1, text) == {:ok, 2 * @mib}
      assert Beamr.IO.read_utf8(wasm, 1, 2 * @mib) == {:ok, text}
      :ok = Beamr.IO.fill(wasm, 1, 0xFF, @mib)
      assert Beamr.IO.read_utf8(wasm, 1, @mib) == {:ok, :binary.copy("\uFFFD", @mib)}
    end

    test "read_utf8!/3 and write_utf8!/3 answer the value, or raise the error" do
      wasm = pages(1)
      assert Beamr.IO.write_utf8!(wasm, 0, "a") == 1
      assert Beamr.IO.read_utf8!(wasm, 0, 1) == "a"
      assert_raise MemoryError, fn -> Beamr.IO.write_utf8!(wasm, @page, "a") end
      assert_raise MemoryError, fn -> Beamr.IO.read_utf8!(wasm, @page, 1) end
    end

    test "refuses other options, offsets and strings" do
      wasm = pages(1)
      assert_raise ArgumentError, fn -> Beamr.IO.read_utf8(wasm, 0, 1, invalid: :skip) end
      assert_raise ArgumentError, fn -> Beamr.IO.write_utf8(wasm, 0, "a", invalid: nil) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.read_utf8(wasm, -1, 1) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.read_utf8(wasm, 0, -1) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.write_utf8(wasm, 0, untyped(~c"a")) end
    end
  end

  describe "pages and growth" do
    test "grow/2 answers the pages before" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1 4))|)
      assert Beamr.IO.pages(wasm) == {:ok, 1}
      assert Beamr.IO.grow(wasm, 2) == {:ok, 1}
      assert Beamr.IO.pages(wasm) == {:ok, 3}
      assert Beamr.IO.grow(wasm, 0) == {:ok, 3}
      assert Beamr.IO.size(wasm) == {:ok, 3 * @page}
      assert Beamr.IO.write(wasm, 3 * @page - 1, "x") == :ok
    end

    test "a refused growth is an error and changes nothing" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1 4))|)
      :ok = Beamr.IO.write(wasm, 0, "kept")

      for pages <- [4, 65_536, 2 ** 48, 2 ** 64 - 1, 2 ** 64, 10 ** 30] do
        assert {:error, error} = Beamr.IO.grow(wasm, pages)
        length = pages * @page
        assert %MemoryError{reason: :cannot_grow, size: @page, length: ^length} = error
      end

      assert Beamr.IO.pages(wasm) == {:ok, 1}
      assert Beamr.IO.read(wasm, 0, 4) == {:ok, "kept"}
      assert Beamr.IO.grow(wasm, 3) == {:ok, 1}
    end

    test "obeys max_memory" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1))|, max_memory: 3 * @page)

      assert {:error, %MemoryError{reason: :cannot_grow}} = Beamr.IO.grow(wasm, 3)
      assert Beamr.IO.grow(wasm, 2) == {:ok, 1}
      assert {:error, %MemoryError{reason: :cannot_grow}} = Beamr.IO.grow(wasm, 1)
    end

    test "a module that exports no memory has none to grow" do
      wasm = Beamr.instantiate!("(module)")
      assert Beamr.IO.pages(wasm) == {:ok, 0}
      assert Beamr.IO.grow(wasm, 0) == {:ok, 0}
      assert {:error, %MemoryError{reason: :cannot_grow, size: 0}} = Beamr.IO.grow(wasm, 1)
    end

    test "inside an import the guest sees it, and so does everybody" do
      wasm =
        Beamr.instantiate!(
          """
          (module
            (import "env" "grow" (func $grow))
            (memory (export "memory") 1)
            (func (export "f") (result i32)
              (call $grow)
              (i32.store (i32.const 131068) (i32.const 42))
              (memory.size)))
          """,
          imports: %{
            "env" => %{
              "grow" => fn wasm ->
                {:ok, 1} = Beamr.IO.grow(wasm, 1)
                {:ok, 131_072} = Beamr.IO.size(wasm)
                :ok = Beamr.IO.write_i64(wasm, 131_060, 7)
                {:ok, 7} = Task.await(Task.async(fn -> Beamr.IO.read_i64(wasm, 131_060) end))
              end
            }
          }
        )

      assert Beamr.call(wasm, "f", []) == {:ok, [2]}
      assert Beamr.IO.read_many(wasm, [{131_060, :i64}, {131_068, :i32}]) == {:ok, [7, 42]}
    end

    test "by another process while an import is suspended" do
      wasm = holder()
      held = start_hold(wasm)
      assert Beamr.IO.grow(wasm, 1) == {:ok, 1}
      assert Beamr.IO.write_u8(wasm, 2 * @page - 1, 9) == :ok
      send(held.pid, :go_on)
      assert Task.await(held) == {:ok, []}
      assert Beamr.IO.read_u8(wasm, 2 * @page - 1) == {:ok, 9}
    end

    test "waits for a call that is running" do
      wasm = Beamr.instantiate!(endless())
      running = start_endless(wasm)
      growth = Task.async(fn -> Beamr.IO.grow(wasm, 1) end)
      await_waiting(growth.pid)
      Beamr.interrupt(wasm)
      assert Task.await(growth) == {:ok, 1}
      assert {:error, %{reason: :interrupted}} = Task.await(running)
    end

    test "between every access" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 0))|)

      for n <- 1..50 do
        assert Beamr.IO.grow(wasm, 1) == {:ok, n - 1}
        assert Beamr.IO.write_u32(wasm, n * @page - 4, n) == :ok
        assert Beamr.IO.read_u32(wasm, n * @page - 4) == {:ok, n}
        assert {:error, %{reason: :out_of_bounds}} = Beamr.IO.read_u32(wasm, n * @page - 3)
        assert Beamr.IO.write_array(wasm, n * @page - 8, :u32, [n, n]) == :ok
        assert Beamr.IO.read_many(wasm, [{n * @page - 8, :u32}]) == {:ok, [n]}

        assert Beamr.IO.find(wasm, 0, n * @page, <<n::little-32, n::little-32>>) ==
                 {:ok, n * @page - 8}
      end
    end

    test "by the guest between every access" do
      wasm =
        Beamr.instantiate!("""
        (module (memory (export "memory") 1)
          (func (export "grow") (result i32) (memory.grow (i32.const 1))))
        """)

      for n <- 1..50 do
        assert Beamr.call(wasm, "grow", []) == {:ok, [n]}
        assert Beamr.IO.write_f64(wasm, n * @page + 1, n / 2) == :ok
        assert Beamr.IO.read_f64(wasm, n * @page + 1) == {:ok, n / 2}
      end
    end

    test "valid_range?/3: (size, 0) is one, (size, 1) is not" do
      wasm = pages(1)
      assert Beamr.IO.valid_range?(wasm, 0, @page)
      assert Beamr.IO.valid_range?(wasm, @page, 0)
      refute Beamr.IO.valid_range?(wasm, @page, 1)
      refute Beamr.IO.valid_range?(wasm, 1, @page)
      refute Beamr.IO.valid_range?(wasm, 2 ** 64 - 1, 1)
      refute Beamr.IO.valid_range?(wasm, 1, 2 ** 64 - 1)
      refute Beamr.IO.valid_range?(wasm, 0, 0, memory: "other")
      Beamr.close(wasm)
      refute Beamr.IO.valid_range?(wasm, 0, 0)
    end

    test "pages!/1 and grow!/2 answer the number, or raise the error" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") 1 1))|)
      assert Beamr.IO.pages!(wasm) == 1
      assert Beamr.IO.grow!(wasm, 0) == 1
      assert_raise MemoryError, fn -> Beamr.IO.grow!(wasm, 1) end
      assert_raise MemoryError, fn -> Beamr.IO.pages!(wasm, memory: "other") end
    end

    test "refuse what is no number of pages" do
      for pages <- [-1, 1.0, nil] do
        assert_raise FunctionClauseError, fn -> Beamr.IO.grow(pages(1), pages) end
      end
    end
  end

  describe "blocks" do
    test "fill/4 sets the bytes, and no others" do
      wasm = pages(1)
      assert Beamr.IO.fill(wasm, 10, 0xFF, 3) == :ok
      assert Beamr.IO.read(wasm, 9, 5) == {:ok, <<0, 255, 255, 255, 0>>}
      assert Beamr.IO.fill(wasm, @page, 1, 0) == :ok

      assert {:error,
              %MemoryError{reason: :out_of_bounds, offset: 65_535, length: 2, size: @page}} =
               Beamr.IO.fill(wasm, @page - 1, 1, 2)

      assert Beamr.IO.read_u8(wasm, @page - 1) == {:ok, 0}

      for byte <- [-1, 256, 1.0, nil] do
        assert_raise FunctionClauseError, fn -> Beamr.IO.fill(wasm, 0, byte, 1) end
      end
    end

    test "copy/4 inside a memory against a model, overlaps included" do
      for_random_cases(50, fn ->
        wasm = pages(1)
        bytes = :rand.bytes(200)
        :ok = Beamr.IO.write(wasm, 0, bytes)
        [to, from] = [random_integer(0, 100), random_integer(0, 100)]
        length = random_integer(0, 100)
        assert Beamr.IO.copy(wasm, to, from, length) == :ok
        model = overwrite(bytes, to, binary_part(bytes, from, length))
        assert Beamr.IO.read(wasm, 0, 200) == {:ok, model}
      end)
    end

    test "copy/4 says which side is out of bounds, and writes nothing" do
      {one, two} = {pages(1), pages(2)}
      :ok = Beamr.IO.fill(two, 0, 1, 2 * @page)

      assert {:error,
              %MemoryError{reason: :out_of_bounds, offset: 65_535, length: 2, size: @page}} =
               Beamr.IO.copy(one, @page - 1, {two, 0}, 2)

      assert {:error,
              %MemoryError{reason: :out_of_bounds, offset: 131_071, length: 2, size: size}} =
               Beamr.IO.copy(one, 0, {two, 2 * @page - 1}, 2)

      assert size == 2 * @page

      for huge <- @huge do
        assert {:error, %{reason: :out_of_bounds, offset: ^huge}} = Beamr.IO.copy(one, huge, 0, 1)
        assert {:error, %{reason: :out_of_bounds, offset: ^huge}} = Beamr.IO.copy(one, 0, huge, 1)
        assert {:error, %{reason: :out_of_bounds, length: ^huge}} = Beamr.IO.copy(one, 0, 0, huge)
      end

      assert Beamr.IO.read(one, 0, @page) == {:ok, :binary.copy(<<0>>, @page)}
    end

    test "copy/4 between two guests, also while both are in calls" do
      {one, two} = {holder(), holder()}
      [held_one, held_two] = [start_hold(one), start_hold(two)]
      :ok = Beamr.IO.write(one, 0, "from one")
      assert Beamr.IO.copy(two, 100, {one, 0}, 8) == :ok
      assert Beamr.IO.read(two, 100, 8) == {:ok, "from one"}
      for held <- [held_one, held_two], do: send(held.pid, :go_on)
      for held <- [held_one, held_two], do: assert(Task.await(held) == {:ok, []})
      assert Beamr.IO.copy(one, 200, {two, 100}, 8) == :ok
      assert Beamr.IO.read(one, 200, 8) == {:ok, "from one"}
      # The other guest may be the same one.
      assert Beamr.IO.copy(one, 204, {one, 200}, 8) == :ok
      assert Beamr.IO.read(one, 200, 12) == {:ok, "fromfrom one"}
    end

    test "copy/4 in opposite directions at once comes to an end" do
      {one, two} = {pages(64), pages(64)}
      :ok = Beamr.IO.fill(one, 0, 1, 64 * @page)

      for length <- [8, 3 * @mib] do
        tasks =
          for {to, from} <- [{one, two}, {two, one}, {one, two}, {two, one}] do
            Task.async(fn ->
              for _ <- 1..div(200, if(length > @mib, do: 10, else: 1)) do
                :ok = Beamr.IO.copy(to, 0, {from, @page}, length)
                {:ok, _order} = Beamr.IO.compare(from, 0, {to, 8}, length)
              end
            end)
          end

        Task.await_many(tasks, 60_000)
      end
    end

    test "copy/4 from a guest that runs" do
      {running, idle} = {Beamr.instantiate!(endless()), pages(1)}
      task = start_endless(running)

      for _ <- 1..100 do
        :ok = Beamr.IO.copy(idle, 0, {running, 0}, 8)
        :ok = Beamr.IO.copy(running, 8, {idle, 0}, 8)
      end

      assert Beamr.IO.read_u64!(idle, 0) > 0
      Beamr.interrupt(running)
      assert {:error, %{reason: :interrupted}} = Task.await(task)
    end

    test "compare/4 goes by the first byte that differs" do
      {one, two} = {pages(1), pages(1)}
      :ok = Beamr.IO.write(one, 0, <<1, 2, 200, 0>>)
      :ok = Beamr.IO.write(two, 4, <<1, 2, 100, 9>>)
      assert Beamr.IO.compare(one, 0, {two, 4}, 2) == {:ok, :eq}
      assert Beamr.IO.compare(one, 0, {two, 4}, 4) == {:ok, :gt}
      assert Beamr.IO.compare(two, 4, {one, 0}, 4) == {:ok, :lt}
      assert Beamr.IO.compare(one, 0, 1, 2) == {:ok, :lt}
      assert Beamr.IO.compare(one, @page, {two, @page}, 0) == {:ok, :eq}

      assert {:error, %MemoryError{reason: :out_of_bounds, offset: 65_536}} =
               Beamr.IO.compare(one, 0, {two, @page}, 1)

      assert_raise MemoryError, fn -> Beamr.IO.compare!(one, @page, 0, 1) end
      assert Beamr.IO.compare!(one, 0, 0, 9) == :eq
    end

    test "find/4 against a model" do
      for_random_cases(100, fn ->
        wasm = pages(1)
        bytes = for _ <- 1..200, into: "", do: <<Enum.random(~c"ab")>>
        :ok = Beamr.IO.write(wasm, 50, bytes)
        pattern = for _ <- 1..random_integer(1, 8), into: "", do: <<Enum.random(~c"ab")>>
        [offset, length] = [random_integer(0, 100), random_integer(0, 100)]

        expected =
          case :binary.match(bytes, pattern, scope: {offset, length}) do
            {at, _length} -> 50 + at
            :nomatch -> nil
          end

        assert Beamr.IO.find(wasm, 50 + offset, length, pattern) == {:ok, expected}
      end)
    end

    test "find/4 in odd places" do
      wasm = pages(64)
      assert Beamr.IO.find(wasm, 5, 0, "") == {:ok, 5}
      assert Beamr.IO.find(wasm, 5, 0, "x") == {:ok, nil}
      :ok = Beamr.IO.write(wasm, 64 * @page - 3, "end")
      assert Beamr.IO.find(wasm, 0, 64 * @page, "end") == {:ok, 64 * @page - 3}
      assert Beamr.IO.find!(wasm, 0, 64 * @page - 1, "end") == nil
      assert_raise MemoryError, fn -> Beamr.IO.find!(wasm, 1, 64 * @page, "end") end
      assert_raise FunctionClauseError, fn -> Beamr.IO.find(wasm, 0, 1, untyped(~c"x")) end
    end

    test "of more than a MiB" do
      {one, two} = {pages(64), pages(64)}
      assert Beamr.IO.fill(one, 1, ?x, 3 * @mib) == :ok
      assert Beamr.IO.copy(two, 2, {one, 1}, 3 * @mib) == :ok
      assert Beamr.IO.compare(two, 2, {one, 1}, 3 * @mib) == {:ok, :eq}
      assert Beamr.IO.copy(one, 0, 1, 3 * @mib) == :ok
      assert Beamr.IO.compare(two, 2, {one, 2}, 3 * @mib) == {:ok, :gt}
    end

    test "fill!/4 and copy!/4 answer :ok, or raise the error" do
      wasm = pages(1)
      assert Beamr.IO.fill!(wasm, 0, 1, 1) == :ok
      assert Beamr.IO.copy!(wasm, 1, 0, 1) == :ok
      assert_raise MemoryError, fn -> Beamr.IO.fill!(wasm, @page, 1, 1) end
      assert_raise MemoryError, fn -> Beamr.IO.copy!(wasm, @page, 0, 1) end
    end

    test "refuse what is no offset, length or guest" do
      wasm = pages(1)

      for args <- [[-1, 0, 1], [0, -1, 1], [0, 0, -1], [0, {wasm, -1}, 1], [0, {"no", 0}, 1]],
          function <- [:copy, :compare] do
        assert_raise FunctionClauseError, fn -> apply(Beamr.IO, function, [wasm | args]) end
      end

      assert_raise ArgumentError, fn -> Beamr.IO.copy(wasm, 0, 0, 1, other_memory: "a") end
      assert_raise ArgumentError, fn -> Beamr.IO.compare(wasm, 0, 0, 1, source_memory: "a") end
    end
  end

  describe "hexdump" do
    test "is one line of lowercase pairs with single spaces" do
      wasm = pages(1)
      :ok = Beamr.IO.write(wasm, 0, <<"Hello", 0xAB, 0xFF, 0>>)
      assert Beamr.IO.hexdump(wasm, 0, 5) == {:ok, "48 65 6c 6c 6f"}
      assert Beamr.IO.hexdump(wasm, 5, 3) == {:ok, "ab ff 00"}
      assert Beamr.IO.hexdump(wasm, @page, 0) == {:ok, ""}
      assert Beamr.IO.hexdump!(wasm, 0, 1) == "48"
      refute Beamr.IO.hexdump!(wasm, 0, 100) =~ "\n"
    end

    test "is lines of 16 with offsets and ASCII where that is asked for" do
      wasm = pages(2)
      :ok = Beamr.IO.write(wasm, 0xFFF8, <<"Hello, wasm!", 0x7F, 0, 31, 200, "the next line">>)

      assert Beamr.IO.hexdump!(wasm, 0xFFF8, 29, format: :canonical) == """
             0000fff8  48 65 6c 6c 6f 2c 20 77  61 73 6d 21 7f 00 1f c8  |Hello, wasm!....|
             00010008  74 68 65 20 6e 65 78 74  20 6c 69 6e 65           |the next line|\
             """

      assert Beamr.IO.hexdump!(wasm, 0, 8, format: :canonical) ==
               "00000000  00 00 00 00 00 00 00 00                           |........|"

      assert Beamr.IO.hexdump(wasm, 0, 0, format: :canonical) == {:ok, ""}
    end

    test "fails as a read does" do
      wasm = pages(1)
      assert {:error, %MemoryError{reason: :out_of_bounds}} = Beamr.IO.hexdump(wasm, @page, 1)
      assert_raise MemoryError, fn -> Beamr.IO.hexdump!(wasm, @page, 1) end
      assert_raise ArgumentError, fn -> Beamr.IO.hexdump(wasm, 0, 1, format: :octal) end
      assert_raise FunctionClauseError, fn -> Beamr.IO.hexdump(wasm, -1, 1) end
    end
  end

  # Every function once, on the memory of that name.
  defp tour(guest, base, opts) do
    for {type, n} <- Enum.with_index(@types) do
      :ok = write(type, guest, base + 8 * n, n, opts)
      assert {:ok, value} = read(type, guest, base + 8 * n, opts)
      assert value == n
    end

    :ok = Beamr.IO.write_array(guest, base, :i32, [1, 2], opts)
    assert Beamr.IO.read_array(guest, base, :i32, 2, opts) == {:ok, [1, 2]}

    assert Beamr.IO.read_array(guest, base, :i32, 1, [as: :binary] ++ opts) ==
             {:ok, <<1::little-32>>}

    :ok = Beamr.IO.write_many(guest, [{base, :u8, 7}, {base + 1, "x"}], opts)
    assert Beamr.IO.read_many(guest, [{base, :u8}, {base + 1, 1}], opts) == {:ok, [7, "x"]}
    :ok = Beamr.IO.fill(guest, base, ?f, 4, opts)
    :ok = Beamr.IO.copy(guest, base + 2, base, 4, opts)
    assert Beamr.IO.compare(guest, base, base + 2, 4, opts) == {:ok, :eq}
    assert Beamr.IO.write_utf8(guest, base + 4, "é", opts) == {:ok, 2}
    assert Beamr.IO.read_utf8(guest, base + 3, 3, opts) == {:ok, "fé"}
    assert Beamr.IO.find(guest, base, 10, "é", opts) == {:ok, base + 4}
    assert Beamr.IO.hexdump(guest, base, 2, opts) == {:ok, "66 66"}
    assert Beamr.IO.valid_range?(guest, base, 16, opts)
    {:ok, pages} = Beamr.IO.pages(guest, opts)
    assert Beamr.IO.grow(guest, 0, opts) == {:ok, pages}
  end

  describe "everything" do
    test "on a memory that is exported as \"mem\"" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "mem") 1))|)
      tour(wasm, 64, [])
      tour(wasm, 256, memory: "mem")
    end

    test "on either of two memories" do
      wasm =
        Beamr.instantiate!(~S|(module (memory (export "one") 1) (memory (export "two") 2 4))|)

      tour(wasm, 64, memory: "one")
      tour(wasm, 70_000, memory: "two")
      assert Beamr.IO.read(wasm, 0, 64) == {:ok, :binary.copy(<<0>>, 64)}

      :ok = Beamr.IO.write(wasm, 0, "first", memory: "one")
      assert Beamr.IO.copy(wasm, 80_000, 0, 5, memory: "two", source_memory: "one") == :ok
      assert Beamr.IO.read(wasm, 80_000, 5, memory: "two") == {:ok, "first"}

      assert Beamr.IO.compare(wasm, 80_000, 0, 5, memory: "two", other_memory: "one") ==
               {:ok, :eq}

      assert {:error, %MemoryError{reason: :out_of_bounds, size: @page, memory: "one"}} =
               Beamr.IO.copy(wasm, 0, 80_000, 5, memory: "two", source_memory: "one")

      assert Beamr.IO.grow(wasm, 1, memory: "two") == {:ok, 2}
      assert Beamr.IO.pages(wasm, memory: "one") == {:ok, 1}
      other = Beamr.instantiate!(~S|(module (memory (export "memory") 1))|)
      assert Beamr.IO.copy(other, 0, {wasm, 80_000}, 5, source_memory: "two") == :ok
      assert Beamr.IO.read(other, 0, 5) == {:ok, "first"}
    end

    test "on one memory under two names" do
      wasm = Beamr.instantiate!(~S|(module (memory (export "a") (export "b") 1))|)
      :ok = Beamr.IO.write(wasm, 0, "abcd")
      assert Beamr.IO.copy(wasm, 2, 0, 4, memory: "a", source_memory: "b") == :ok
      assert Beamr.IO.read(wasm, 0, 6) == {:ok, "ababcd"}
    end

    test "on a memory of 64 bits, above 4 GiB" do
      # Reserved by the operating system, and touched only where it is written to.
      wasm = Beamr.instantiate!(~S|(module (memory (export "memory") i64 65537 65539))|)
      tour(wasm, 2 ** 32 + 8, [])
      assert Beamr.IO.write_f64(wasm, 2 ** 32 - 4, 0.5) == :ok
      assert Beamr.IO.read_f64(wasm, 2 ** 32 - 4) == {:ok, 0.5}
      assert Beamr.IO.read_u32(wasm, 0) == {:ok, 0}
      assert Beamr.IO.grow(wasm, 2) == {:ok, 65_537}
      assert Beamr.IO.write_i64(wasm, 2 ** 32 + 3 * @page - 8, -1) == :ok

      assert {:error, %{reason: :out_of_bounds}} =
               Beamr.IO.read_i64(wasm, 2 ** 32 + 3 * @page - 7)

      assert {:error, %{reason: :cannot_grow}} = Beamr.IO.grow(wasm, 1)
    end

    test "on a memory that is not there is an error that names it" do
      wasm = pages(1)
      other = pages(1)

      for {result, name} <- [
            {Beamr.IO.read_i8(wasm, 0, memory: "no"), "no"},
            {Beamr.IO.write_i8(wasm, 0, 1, memory: "no"), "no"},
            {Beamr.IO.read_array(wasm, 0, :i8, 1, memory: "no"), "no"},
            {Beamr.IO.write_array(wasm, 0, :i8, [1], memory: "no"), "no"},
            {Beamr.IO.read_many(wasm, [{0, :i8}], memory: "no"), "no"},
            {Beamr.IO.write_many(wasm, [{0, :i8, 1}], memory: "no"), "no"},
            {Beamr.IO.fill(wasm, 0, 1, 1, memory: "no"), "no"},
            {Beamr.IO.copy(wasm, 0, 0, 1, memory: "no"), "no"},
            {Beamr.IO.copy(wasm, 0, 0, 1, source_memory: "no"), "no"},
            {Beamr.IO.copy(wasm, 0, {other, 0}, 1, source_memory: "no"), "no"},
            {Beamr.IO.compare(wasm, 0, 0, 1, other_memory: "no"), "no"},
            {Beamr.IO.find(wasm, 0, 1, "x", memory: "no"), "no"},
            {Beamr.IO.read_utf8(wasm, 0, 1, memory: "no"), "no"},
            {Beamr.IO.write_utf8(wasm, 0, "x", memory: "no"), "no"},
            {Beamr.IO.hexdump(wasm, 0, 1, memory: "no"), "no"},
            {Beamr.IO.pages(wasm, memory: "no"), "no"},
            {Beamr.IO.grow(wasm, 0, memory: "no"), "no"}
          ] do
        assert {:error, %MemoryError{reason: :unknown_memory, memory: ^name}} = result
      end
    end

    test "on a closed instance is closed" do
      {wasm, open} = {pages(1), pages(1)}
      :ok = Beamr.close(wasm)

      for result <- [
            Beamr.IO.read_i8(wasm, 0),
            Beamr.IO.write_i8(wasm, 0, 1),
            Beamr.IO.read_array(wasm, 0, :i8, 1),
            Beamr.IO.write_array(wasm, 0, :i8, [1]),
            Beamr.IO.read_many(wasm, [{0, :i8}]),
            Beamr.IO.write_many(wasm, [{0, :i8, 1}]),
            Beamr.IO.fill(wasm, 0, 1, 1),
            Beamr.IO.copy(wasm, 0, 0, 1),
            Beamr.IO.copy(open, 0, {wasm, 0}, 1),
            Beamr.IO.copy(wasm, 0, {open, 0}, 1),
            Beamr.IO.compare(wasm, 0, 0, 1),
            Beamr.IO.find(wasm, 0, 1, "x"),
            Beamr.IO.read_utf8(wasm, 0, 1),
            Beamr.IO.write_utf8(wasm, 0, "x"),
            Beamr.IO.hexdump(wasm, 0, 1),
            Beamr.IO.pages(wasm),
            Beamr.IO.grow(wasm, 1),
            Beamr.IO.held(wasm),
            Beamr.IO.held_count(wasm)
          ] do
        assert {:error, %MemoryError{reason: :closed}} = result
      end
    end

    test "by a server's pid and name, and inside its own imports" do
      test = self()

      imports = %{
        "env" => %{
          "tour" => fn _wasm ->
            tour(self(), 512, [])
            send(test, :toured)
          end
        }
      }

      name = :"#{__MODULE__}.server"

      pid =
        start_supervised!(
          {Beamr.Server,
           name: name,
           imports: imports,
           module: """
           (module (import "env" "tour" (func $tour)) (memory (export "memory") 1)
             (func (export "f") (call $tour)))
           """}
        )

      tour(pid, 64, [])
      tour(name, 128, memory: "memory")
      assert Beamr.call(pid, "f", []) == {:ok, []}
      assert_received :toured

      wasm = pages(1)
      :ok = Beamr.IO.write(pid, 0, "server")
      assert Beamr.IO.copy(wasm, 0, {pid, 0}, 6) == :ok
      assert Beamr.IO.compare(name, 0, {wasm, 0}, 6) == {:ok, :eq}
      assert Beamr.IO.copy(pid, 6, {name, 0}, 6) == :ok
      assert Beamr.IO.read(wasm, 0, 6) == {:ok, "server"}
    end

    test "exits where a pid stands for no guest" do
      {dead, monitor} = spawn_monitor(fn -> :ok end)
      assert_receive {:DOWN, ^monitor, :process, ^dead, _reason}, 10_000

      for function <- [
            &Beamr.IO.read_i8(&1, 0),
            &Beamr.IO.write_i8(&1, 0, 1),
            &Beamr.IO.read_array(&1, 0, :i8, 1),
            &Beamr.IO.write_array(&1, 0, :i8, [1]),
            &Beamr.IO.read_many(&1, []),
            &Beamr.IO.write_many(&1, []),
            &Beamr.IO.fill(&1, 0, 1, 1),
            &Beamr.IO.copy(&1, 0, 0, 1),
            &Beamr.IO.copy(&1, 0, {pages(1), 0}, 1),
            &Beamr.IO.compare(&1, 0, {pages(1), 0}, 1),
            &Beamr.IO.find(&1, 0, 1, "x"),
            &Beamr.IO.read_utf8(&1, 0, 1),
            &Beamr.IO.write_utf8(&1, 0, "x"),
            &Beamr.IO.pages/1,
            &Beamr.IO.grow(&1, 1),
            &Beamr.IO.valid_range?(&1, 0, 0),
            &Beamr.IO.held/1,
            &Beamr.IO.held_count/1
          ] do
        assert {:noproc, _mfa} = catch_exit(function.(dead))
      end
    end
  end
end
