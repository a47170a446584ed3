defmodule Beamr.RealGuests.XxhashTest do
  # xxHash as npm's xxhash-wasm has it, written by hand in WebAssembly's text. Its memory is called
  # `mem`, and there is no malloc: the caller has all of the memory.
  use Beamr.Case, async: true

  @moduletag :real_guests

  setup_all do
    {:ok, compiled: Beamr.RealGuest.module!("xxhash")}
  end

  setup %{compiled: module} do
    {:ok, wasm: Beamr.instantiate!(module)}
  end

  defp hash(wasm, name, bytes, seed) do
    :ok = Beamr.IO.write(wasm, 0, bytes, memory: "mem")
    [hash] = Beamr.call!(wasm, name, [0, byte_size(bytes), seed], unsigned: true)
    hash
  end

  # The state of a digest in the making is at 0, and its input behind it. `init` sets only some of
  # the state, and wants the rest to be zeros.
  defp in_parts(wasm, bits, state, parts) do
    :ok = Beamr.IO.fill(wasm, 0, 0, state, memory: "mem")
    [] = Beamr.call!(wasm, "init#{bits}", [0, 0])

    for part <- parts do
      :ok = Beamr.IO.write(wasm, state, part, memory: "mem")
      [] = Beamr.call!(wasm, "update#{bits}", [0, state, byte_size(part)])
    end

    [hash] = Beamr.call!(wasm, "digest#{bits}", [0], unsigned: true)
    hash
  end

  test "hashes are those of the specification", %{wasm: wasm} do
    assert hash(wasm, "xxh32", "", 0) == 0x02CC5D05
    assert hash(wasm, "xxh64", "", 0) == 0xEF46DB3751D8E999
    assert hash(wasm, "xxh32", "abc", 0) == 0x32D153FF
    assert hash(wasm, "xxh64", "abc", 0) == 0x44BC2CF5AD770999
  end

  test "seeds count, as signed and as unsigned", %{wasm: wasm} do
    refute hash(wasm, "xxh64", "abc", 1) == hash(wasm, "xxh64", "abc", 0)
    assert hash(wasm, "xxh64", "abc", -1) == hash(wasm, "xxh64", "abc", 0xFFFFFFFFFFFFFFFF)
    assert hash(wasm, "xxh32", "abc", -1) == hash(wasm, "xxh32", "abc", 0xFFFFFFFF)
  end

  test "a digest in parts is that of the whole", %{wasm: wasm} do
    for_random_cases(50, fn ->
      parts = for _ <- 1..random_integer(1, 6), do: :rand.bytes(random_integer(0, 200))
      whole = IO.iodata_to_binary(parts)
      assert in_parts(wasm, 32, 48, parts) == hash(wasm, "xxh32", whole, 0)
      assert in_parts(wasm, 64, 88, parts) == hash(wasm, "xxh64", whole, 0)
    end)
  end

  test "more than a page wants memory to grow first", %{wasm: wasm} do
    bytes = String.duplicate("0123456789abcdef", 8192)

    assert {:error, %Beamr.MemoryError{reason: :out_of_bounds, size: 65_536}} =
             Beamr.IO.write(wasm, 0, bytes, memory: "mem")

    assert {:ok, _pages} = Beamr.IO.grow(wasm, 1, memory: "mem")

    <<one::binary-60_000, two::binary-60_000, three::binary>> = bytes
    assert hash(wasm, "xxh64", bytes, 0) == in_parts(wasm, 64, 88, [one, two, three])
  end

  test "what is outside of memory is a trap, and the guest goes on", %{wasm: wasm} do
    assert {:error, %Beamr.Trap{reason: :memory_out_of_bounds}} =
             Beamr.call(wasm, "xxh64", [65_000, 10_000, 0])

    assert {:error, %Beamr.CallError{reason: :argument}} =
             Beamr.call(wasm, "xxh32", [0, 0, 0x1_0000_0000])

    assert hash(wasm, "xxh32", "", 0) == 0x02CC5D05
  end
end
