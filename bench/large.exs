defmodule Bench.Large do
  @moduledoc false
  # A module of a megabyte, which takes a second or so to compile.

  # Functions of about a kilobyte each: loops, loads and stores, calls, and arithmetic that
  # differs from one to the next.
  @functions if Bench.Measure.quick?(), do: 20, else: 1_000
  @blocks 18

  @doc "The module's bytes."
  def module do
    types = section(1, vector([<<0x60, 2, 0x7F, 0x7F, 1, 0x7F>>]))
    functions = section(3, vector(List.duplicate(<<0>>, @functions)))
    memory = section(5, <<1, 0, 1>>)
    exports = section(7, vector([<<1, "f", 0, uleb(@functions - 1)::binary>>]))
    code = section(10, vector(for n <- 0..(@functions - 1), do: body(n)))
    <<0, "asm", 1, 0, 0, 0>> <> types <> functions <> memory <> exports <> code
  end

  # (param $a i32) (param $b i32) (result i32) with one more local.
  defp body(n) do
    blocks = for k <- 1..@blocks, do: block(n * @blocks + k)
    sized(IO.iodata_to_binary([<<1, 1, 0x7F>>, blocks, call(n), <<0x20, 2, 0x0B>>]))
  end

  defp block(k) do
    operator = Enum.at([0x6A, 0x6B, 0x6C, 0x71, 0x72, 0x73, 0x77, 0x78], rem(k, 8))

    [
      # $c = ($a op constant) ^ memory[($b + k) & 0xFFF0]
      [<<0x20, 0, 0x41>>, sleb(k * 7919), operator],
      [<<0x20, 1, 0x41>>, sleb(k), <<0x6A, 0x41>>, sleb(0xFFF0), <<0x71, 0x28, 2, 0>>],
      <<0x73, 0x21, 2>>,
      # loop: $a = $a - 1; continue if $a > $c & 7
      [<<0x03, 0x40, 0x20, 0, 0x41, 1, 0x6B, 0x22, 0, 0x20, 2, 0x41, 7, 0x71>>],
      <<0x4A, 0x0D, 0, 0x0B>>,
      # memory[$c & 0xFFF0] = $b
      [<<0x20, 2, 0x41>>, sleb(0xFFF0), <<0x71, 0x20, 1, 0x36, 2, 0>>]
    ]
  end

  defp call(0), do: []
  defp call(n), do: [<<0x20, 0, 0x20, 1, 0x10>>, uleb(n - 1), <<0x21, 2>>]

  defp section(id, contents), do: <<id>> <> sized(contents)
  defp vector(items), do: uleb(length(items)) <> IO.iodata_to_binary(items)
  defp sized(bytes), do: uleb(byte_size(bytes)) <> bytes

  defp uleb(n) when n < 0x80, do: <<n>>
  defp uleb(n), do: <<1::1, Bitwise.band(n, 0x7F)::7, uleb(Bitwise.bsr(n, 7))::binary>>

  defp sleb(n) when n < 0x40, do: <<n>>
  defp sleb(n), do: <<1::1, Bitwise.band(n, 0x7F)::7, sleb(Bitwise.bsr(n, 7))::binary>>
end
