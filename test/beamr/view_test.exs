defmodule Beamr.ViewTest do
  use Beamr.Case, async: true

  alias Beamr.{MemoryError, View}

  doctest Beamr.View

  @sizes [i8: 1, u8: 1, i16: 2, u16: 2, i32: 4, u32: 4, i64: 8, u64: 8, f32: 4, f64: 8]

  defp guest do
    Beamr.instantiate!("""
    (module (memory (export "memory") 1 100)
      (func (export "grow") (result i32) (memory.grow (i32.const 1))))
    """)
  end

  defp grow(wasm), do: {:ok, [_pages]} = Beamr.call(wasm, "grow", [])

  describe "new/4" do
    test "is refused where there is no memory" do
      wasm = guest()
      assert {:ok, %View{}} = View.new(wasm, 0, 65_536)
      assert {:ok, %View{}} = View.new(wasm, 65_536, 0)

      for {pointer, length} <- [{65_536, 1}, {0, 65_537}, {2 ** 64, 0}, {2 ** 64 - 1, 1}] do
        assert {:error, %MemoryError{reason: :out_of_bounds, size: 65_536} = error} =
                 View.new(wasm, pointer, length)

        assert {error.offset, error.length} == {pointer, length}
      end

      assert {:error, %MemoryError{reason: :unknown_memory, memory: "no"}} =
               View.new(wasm, 0, 0, memory: "no")

      Beamr.close(wasm)
      assert {:error, %MemoryError{reason: :closed}} = View.new(wasm, 0, 0)
    end

    test "takes no other arguments" do
      wasm = guest()
      assert_raise FunctionClauseError, fn -> View.new(wasm, -1, 0) end
      assert_raise FunctionClauseError, fn -> View.new(wasm, 0, untyped(1.0)) end
      assert_raise FunctionClauseError, fn -> View.new(untyped("wasm"), 0, 0) end
      assert_raise ArgumentError, fn -> View.new(wasm, 0, 0, size: 1) end
    end
  end

  test "every access stays in the window, to the byte" do
    wasm = guest()
    view = View.new!(wasm, 1000, 100)

    for {type, size} <- @sizes, {read, write} = names(type) do
      assert apply(View, write, [view, 100 - size, 1]) == :ok
      assert {:ok, one} = apply(View, read, [view, 100 - size])
      assert one == 1

      for offset <- [100 - size + 1, 100, 2 ** 32 - 1, 2 ** 64 - 1, 2 ** 64],
          result <- [apply(View, read, [view, offset]), apply(View, write, [view, offset, 1])] do
        assert {:error, %MemoryError{reason: :out_of_view} = error} = result
        assert %{offset: ^offset, length: ^size, size: 100, pointer: 1000} = error
      end
    end

    for {result, offset, length} <- [
          {View.read(view, 90, 11), 90, 11},
          {View.write(view, 90, "eleven byte"), 90, 11},
          {View.read_array(view, 4, :f64, 13), 4, 104},
          {View.write_array(view, 93, :u32, [1, 2]), 93, 8},
          {View.write_array(view, 93, :u32, <<0::64>>), 93, 8},
          {View.read_utf8(view, 99, 2), 99, 2},
          {View.write_utf8(view, 99, "é"), 99, 2},
          {View.write_string(view, 96, "four"), 96, 5},
          {View.read_string(view, 100), 100, 1},
          {View.fill(view, 1, 0, 100), 1, 100},
          {View.copy(view, 1, 0, 100), 1, 100},
          {View.copy(view, 0, 1, 100), 1, 100},
          {View.sub(view, 100, 1), 100, 1},
          {View.read(view, 101, 0), 101, 0}
        ] do
      assert {:error, %MemoryError{reason: :out_of_view, size: 100} = error} = result
      assert {error.offset, error.length} == {offset, length}
    end

    assert View.read(view, 100, 0) == {:ok, ""}
    assert Beamr.IO.read!(wasm, 1100, 8) == <<0::64>>
  end

  defp names(type), do: {:"read_#{type}", :"write_#{type}"}

  test "stays right when the guest grows its memory between every access" do
    wasm = guest()
    view = View.new!(wasm, 65_000, 536)

    for n <- 1..50 do
      grow(wasm)
      assert View.write_u32(view, 532, n) == :ok
      grow(wasm)
      assert View.read_u32(view, 532) == {:ok, n}
      assert Beamr.IO.read_u32(wasm, 65_532) == {:ok, n}
      assert View.size(view) == 536
    end
  end

  test "agrees with a binary that is read and written in its place" do
    wasm = guest()

    for_random_cases(300, fn ->
      pointer = random_integer(0, 60_000)
      length = random_integer(8, 200)
      view = View.new!(wasm, pointer, length)
      before = View.to_binary!(view)
      outside = {Beamr.IO.read!(wasm, 0, pointer), Beamr.IO.read!(wasm, pointer + length, 8)}
      {type, size} = Enum.random(@sizes)
      {read, write} = names(type)
      offset = random_integer(0, length - size)
      bits = 8 * size

      value =
        if type in [:f32, :f64],
          do: 0.5 * random_integer(-1000, 1000),
          else: random_integer(0, 100)

      :ok = apply(View, write, [view, offset, value])

      bytes =
        if is_float(value),
          do: <<value::float-little-size(bits)>>,
          else: <<value::little-size(bits)>>

      assert View.to_binary!(view) == overwrite(before, offset, bytes)
      assert apply(View, read, [view, offset]) == {:ok, value}

      assert {Beamr.IO.read!(wasm, 0, pointer), Beamr.IO.read!(wasm, pointer + length, 8)} ==
               outside
    end)
  end

  test "numbers that are none of their type are refused, or wrapped on request" do
    view = View.new!(guest(), 0, 8)

    assert {:error, %MemoryError{reason: :value_out_of_range, given: 2 ** 31}} ==
             with(
               {:error, e} <- View.write_i32(view, 0, 2 ** 31),
               do: {:error, %MemoryError{reason: e.reason, given: e.given}}
             )

    assert View.write_i32(view, 0, 2 ** 31, wrap: true) == :ok
    assert View.read_i32(view, 0) == {:ok, -(2 ** 31)}
    assert View.write_f64(view, 0, :nan) == :ok
    assert View.read_f64(view, 0) == {:ok, :nan}
    assert View.write_array(view, 0, :u8, [256, -1], wrap: true) == :ok
    assert View.read_array(view, 0, :u8, 2, as: :binary) == {:ok, <<0, 255>>}
  end

  test "a string that its NUL ends is looked for in the window only" do
    wasm = guest()
    view = View.new!(wasm, 100, 10_000)
    :ok = View.fill(view, 0, ?x, 10_000)
    :ok = Beamr.IO.write(wasm, 10_100, "\0")

    assert {:error, %MemoryError{reason: :unterminated, offset: 7, size: 10_000} = error} =
             View.read_string(view, 7)

    assert Exception.message(error) ==
             "no NUL ends the string at offset 7 of the view of 10000 bytes at 100"

    for length <- [0, 1, 4095, 4096, 4097, 9_998] do
      :ok = View.fill(view, 0, ?x, 10_000)
      :ok = View.write(view, 1 + length, "\0")
      assert View.read_string(view, 1) == {:ok, String.duplicate("x", length)}
    end

    assert View.write_string(view, 9_995, ["f", "our"]) == :ok
    assert View.read_string(view, 9_995) == {:ok, "four"}
  end

  test "strings of known length" do
    view = View.new!(guest(), 0, 6)
    assert View.write_utf8(view, 1, "grün") == {:ok, 5}
    assert View.read_utf8(view, 1, 5) == {:ok, "grün"}
    assert View.read_utf8(view, 1, 4) == {:ok, "grü"}
    assert View.read_utf8(view, 1, 3) == {:ok, "gr\uFFFD"}

    assert {:error, %MemoryError{reason: :invalid_utf8}} =
             View.read_utf8(view, 1, 3, invalid: :error)

    # A byte that is no UTF-8 becomes three.
    assert {:error, %MemoryError{reason: :out_of_view}} = View.write_utf8(view, 0, "gr\xFC\xFC")
    assert View.write_utf8(view, 0, "g\xFC") == {:ok, 4}
  end

  test "a view of a view is of the same bytes, and no more" do
    view = View.new!(guest(), 1000, 100)
    inner = view |> View.sub!(10, 50) |> View.sub!(5, 10)
    assert {View.pointer(inner), View.size(inner)} == {1015, 10}
    :ok = View.write_u8(inner, 9, 42)
    assert View.read_u8(view, 24) == {:ok, 42}
    assert {:error, %MemoryError{reason: :out_of_view}} = View.read_u8(inner, 10)
    assert View.sub(view, 100, 0) == {:ok, %{view | pointer: 1100, length: 0}}
  end

  test "copies between guests, and between memories of one" do
    wasm =
      Beamr.instantiate!("""
      (module (memory (export "memory") 1) (memory (export "other") 1)
        (data (i32.const 8) "here") (data (memory 1) (i32.const 8) "there"))
      """)

    here = View.new!(wasm, 8, 5)
    there = View.new!(wasm, 8, 5, memory: "other")
    elsewhere = View.new!(guest(), 0, 5)
    assert View.copy(elsewhere, 0, {there, 0}, 5) == :ok
    assert View.to_binary(elsewhere) == {:ok, "there"}
    assert View.copy(there, 0, {here, 0}, 4) == :ok
    assert View.to_binary(there) == {:ok, "heree"}
    assert View.copy(here, 1, {elsewhere, 0}, 4) == :ok
    assert View.to_binary(here) == {:ok, "hther"}
    assert View.copy(here, 0, 1, 4) == :ok
    assert View.to_binary(here) == {:ok, "therr"}
  end

  test "of a server, by its name, is one of the instance that it has" do
    server = :"#{__MODULE__}.#{System.unique_integer()}"

    wat = """
    (module (memory (export "memory") 1)
      (func (export "trap") unreachable))
    """

    start_supervised!({Beamr.Server, module: wat, name: server, on_trap: :reset})
    view = View.new!(server, 16, 8)
    assert View.write_i64(view, 0, -1) == :ok
    assert View.read_u64(view, 0) == {:ok, 2 ** 64 - 1}
    {:error, %Beamr.Trap{}} = Beamr.call(server, "trap", [])
    assert View.read_i64(view, 0) == {:ok, 0}
  end

  test "above 4 GiB in a memory of 64 bits" do
    wasm = Beamr.instantiate!(~s|(module (memory (export "memory") i64 65537))|)
    view = View.new!(wasm, 2 ** 32, 65_536)
    assert View.write_f64(view, 65_528, 0.5) == :ok
    assert Beamr.IO.read_f64(wasm, 2 ** 32 + 65_528) == {:ok, 0.5}
    assert {:error, %MemoryError{reason: :out_of_view}} = View.read_f64(view, 65_529)
  end

  test "the forms with ! answer the value, or raise the error" do
    view = View.new!(guest(), 8, 16)
    assert View.write!(view, 0, "bytes") == :ok
    assert View.read!(view, 0, 5) == "bytes"
    assert View.to_binary!(View.sub!(view, 0, 5)) == "bytes"
    assert View.write_i16!(view, 0, -2) == :ok
    assert View.read_i16!(view, 0) == -2
    assert View.write_array!(view, 0, :i8, [1, 2]) == :ok
    assert View.read_array!(view, 0, :i8, 2) == [1, 2]
    assert View.write_string!(view, 0, "text") == :ok
    assert View.read_string!(view, 0) == "text"
    assert View.write_utf8!(view, 0, "é") == 2
    assert View.read_utf8!(view, 0, 2) == "é"
    assert View.fill!(view, 0, 1, 2) == :ok
    assert View.copy!(view, 2, 0, 2) == :ok
    assert View.read!(view, 0, 4) == <<1, 1, 1, 1>>

    for function <- [
          fn -> View.read!(view, 16, 1) end,
          fn -> View.write_u8!(view, 16, 1) end,
          fn -> View.sub!(view, 0, 17) end,
          fn -> View.new!(view.guest, 0, 65_537) end
        ] do
      assert_raise MemoryError, function
    end
  end

  test "wrong arguments are refused by guards" do
    view = View.new!(guest(), 8, 16)
    assert_raise FunctionClauseError, fn -> View.read(view, -1, 1) end
    assert_raise FunctionClauseError, fn -> View.read_i32(view, untyped(1.0)) end
    assert_raise FunctionClauseError, fn -> View.write_i32(view, 0, untyped("1")) end
    assert_raise FunctionClauseError, fn -> View.read_array(view, 0, untyped(:i24), 1) end
    assert_raise FunctionClauseError, fn -> View.fill(view, 0, 256, 1) end
    assert_raise ArgumentError, fn -> View.write(view, 0, untyped([:no])) end
  end
end
