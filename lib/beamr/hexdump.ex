defmodule Beamr.Hexdump do
  @moduledoc false
  # Bytes as text.

  @line 16
  # Sixteen pairs of digits, the spaces between them, and the wider one in the middle.
  @width @line * 3

  @spec format(binary(), non_neg_integer(), :plain | :canonical) :: String.t()
  def format(bytes, _offset, :plain), do: pairs(bytes)

  def format(bytes, offset, :canonical) do
    bytes |> lines(offset) |> Enum.join("\n")
  end

  defp lines("", _offset), do: []

  defp lines(<<line::binary-size(@line), rest::binary>>, offset) do
    [line(line, offset) | lines(rest, offset + @line)]
  end

  defp lines(line, offset), do: [line(line, offset)]

  defp line(bytes, offset) do
    address = offset |> Integer.to_string(16) |> String.downcase() |> String.pad_leading(8, "0")

    "#{address}  #{bytes |> halves() |> String.pad_trailing(@width)}  |#{ascii(bytes)}|"
  end

  defp halves(<<first::binary-size(8), rest::binary>>) when rest != "" do
    pairs(first) <> "  " <> pairs(rest)
  end

  defp halves(bytes), do: pairs(bytes)

  defp pairs(bytes) do
    for <<byte <- bytes>>, reduce: "" do
      "" -> pair(byte)
      text -> <<text::binary, " ", pair(byte)::binary>>
    end
  end

  defp pair(byte), do: Base.encode16(<<byte>>, case: :lower)

  defp ascii(bytes) do
    for <<byte <- bytes>>, into: "", do: if(byte in 32..126, do: <<byte>>, else: ".")
  end
end
