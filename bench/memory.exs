# What does typed access to memory cost, next to reading the bytes and matching on them, and to
# :binary.copy of the same bytes?
#
#     mix run bench/memory.exs

Code.require_file("measure.exs", __DIR__)

defmodule Bench.Memory do
  import Bench.Measure
  alias Beamr.Native

  @count if Bench.Measure.quick?(), do: 1_000, else: 1_000_000
  @guest """
  (module
    (memory (export "memory") 257)
    (global $top (mut i32) (i32.const 1024))
    (func (export "malloc") (param i32) (result i32)
      (global.set $top (i32.add (global.get $top) (local.get 0)))
      (i32.sub (global.get $top) (local.get 0)))
    (func (export "free") (param i32) (global.set $top (local.get 0))))
  """

  def run do
    wasm = Beamr.instantiate!(@guest)
    numbers(wasm)
    many(wasm)
    arrays(wasm)
    blocks(wasm)
    ownership(wasm)
  end

  defp numbers(wasm) do
    header("One number")
    eight = fn -> Beamr.IO.read(wasm, 8, 8) end
    Beamr.IO.write_f64!(wasm, 8, 1.5)

    for {type, matched} <- [
          i8: fn -> with {:ok, <<n::signed-8>>} <- Beamr.IO.read(wasm, 8, 1), do: n end,
          u8: fn -> with {:ok, <<n::8>>} <- Beamr.IO.read(wasm, 8, 1), do: n end,
          i16: fn ->
            with {:ok, <<n::signed-little-16>>} <- Beamr.IO.read(wasm, 8, 2), do: n
          end,
          u16: fn -> with {:ok, <<n::little-16>>} <- Beamr.IO.read(wasm, 8, 2), do: n end,
          i32: fn ->
            with {:ok, <<n::signed-little-32>>} <- Beamr.IO.read(wasm, 8, 4), do: n
          end,
          u32: fn -> with {:ok, <<n::little-32>>} <- Beamr.IO.read(wasm, 8, 4), do: n end,
          i64: fn ->
            with {:ok, <<n::signed-little-64>>} <- Beamr.IO.read(wasm, 8, 8), do: n
          end,
          u64: fn -> with {:ok, <<n::little-64>>} <- Beamr.IO.read(wasm, 8, 8), do: n end,
          f32: fn ->
            with {:ok, <<x::float-little-32>>} <- Beamr.IO.read(wasm, 8, 4), do: x
          end,
          f64: fn ->
            with {:ok, <<x::float-little-64>>} <- Beamr.IO.read(wasm, 8, 8), do: x
          end
        ] do
      read = Function.capture(Beamr.IO, :"read_#{type}", 2)
      write = Function.capture(Beamr.IO, :"write_#{type}", 3)
      compare("read_#{type}", fn -> read.(wasm, 8) end, "read and match", matched)
      compare("read_#{type}", fn -> read.(wasm, 8) end, "read 8 B", eight)
      compare("write_#{type}", fn -> write.(wasm, 16, 1) end, "read 8 B", eight)
    end
  end

  defp many(wasm) do
    header("Ten numbers here and there")
    offsets = Enum.map(1..10, &(&1 * 100))
    places = Enum.map(offsets, &{&1, :i32})
    writes = Enum.map(offsets, &{&1, :i32, &1})

    compare(
      "read_many",
      fn -> Beamr.IO.read_many(wasm, places) end,
      "read_i32 each",
      fn -> Enum.map(offsets, &Beamr.IO.read_i32(wasm, &1)) end
    )

    compare(
      "write_many",
      fn -> Beamr.IO.write_many(wasm, writes) end,
      "write_i32 each",
      fn -> Enum.each(offsets, &Beamr.IO.write_i32(wasm, &1, &1)) end
    )
  end

  defp arrays(wasm) do
    header("Arrays of #{@count} f64")
    list = Enum.map(1..@count, &(&1 * 0.5))
    packed = for x <- list, into: "", do: <<x::float-little-64>>
    copy = fn -> :binary.copy(packed) end
    each = fn -> Enum.map(0..(@count - 1), &Beamr.IO.read_f64(wasm, 8 * &1)) end
    matched = fn -> for <<x::float-little-64 <- Beamr.IO.read!(wasm, 0, 8 * @count)>>, do: x end
    write = fn -> Beamr.IO.write_array(wasm, 0, :f64, list) end
    write_packed = fn -> Beamr.IO.write_array(wasm, 0, :f64, packed) end
    read = fn -> Beamr.IO.read_array(wasm, 0, :f64, @count) end
    read_packed = fn -> Beamr.IO.read_array(wasm, 0, :f64, @count, as: :binary) end

    compare("write, a binary", write_packed, ":binary.copy", copy)
    compare("read, as a binary", read_packed, ":binary.copy", copy)
    compare("write, a list", write, ":binary.copy", copy)
    compare("read, as a list", read, ":binary.copy", copy)
    compare("read, as a list", read, "read_f64 each", each)
    compare("read, as a list", read, "read and match", matched)
  end

  defp blocks(wasm) do
    header("Blocks of 1 MiB")
    bytes = :binary.copy("x", 1_048_576)
    copy = fn -> :binary.copy(bytes) end
    other = Beamr.instantiate!(@guest)
    Beamr.IO.write!(wasm, 0, bytes)
    Beamr.IO.write!(other, 0, bytes)
    between = fn -> Beamr.IO.copy(other, 0, {wasm, 0}, 1_048_576) end
    by_hand = fn -> Beamr.IO.write(other, 0, Beamr.IO.read!(wasm, 0, 1_048_576)) end

    compare("fill", fn -> Beamr.IO.fill(wasm, 0, ?x, 1_048_576) end, ":binary.copy", copy)

    compare(
      "copy inside",
      fn -> Beamr.IO.copy(wasm, 1_048_576, 0, 1_048_576) end,
      ":binary.copy",
      copy
    )

    compare("copy to another", between, ":binary.copy", copy)
    compare("copy to another", between, "read and write", by_hand)

    compare(
      "compare with another",
      fn -> Beamr.IO.compare(wasm, 0, {other, 0}, 1_048_576) end,
      ":binary.copy",
      copy
    )

    compare(
      "find, in vain",
      fn -> Beamr.IO.find(wasm, 0, 1_048_576, "needle") end,
      ":binary.copy",
      copy
    )

    compare("read_utf8", fn -> Beamr.IO.read_utf8(wasm, 0, 1_048_576) end, ":binary.copy", copy)

    compare("grow by nothing", fn -> Beamr.IO.grow(wasm, 0) end, "no-op NIF", fn ->
      Native.bench_noop()
    end)
  end

  # `free` of this guest gives back whatever was allocated since.
  defp ownership(wasm) do
    header("Ownership")

    called = fn ->
      {:ok, [pointer]} = Beamr.call(wasm, "malloc", [64])
      Beamr.call(wasm, "free", [pointer])
    end

    noted = fn ->
      {:ok, pointer} = Beamr.IO.malloc(wasm, 64)
      Beamr.IO.free(wasm, pointer)
    end

    lent = fn -> Beamr.IO.with_bytes(wasm, "12345678", fn pointer, _length -> pointer end) end
    compare("malloc and free", noted, "call of both", called)
    compare("with_bytes", lent, "malloc and free", noted)
  end
end

Bench.Memory.run()
