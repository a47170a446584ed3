defmodule Beamr.Host.Clean.Text do
  @moduledoc false
  # Text as JavaScript has it, where Elixir has it otherwise: the notation of numbers, what is
  # read as one, and positions in UTF-16 code units.

  @replacement "\uFFFD"

  @doc "The bytes as valid UTF-8: U+FFFD stands for each piece that is none."
  @spec valid(binary()) :: String.t()
  def valid(bytes) do
    if String.valid?(bytes), do: bytes, else: bytes |> valid([]) |> IO.iodata_to_binary()
  end

  defp valid(bytes, done) do
    case :unicode.characters_to_binary(bytes) do
      {_error, good, rest} ->
        rest = binary_part(rest, bad(rest), byte_size(rest) - bad(rest))
        valid(rest, [done, good, @replacement])

      good ->
        [done, good]
    end
  end

  # How long the beginning is that could have become a character: that many bytes are one piece.
  defp bad(<<a, b, c, _::binary>>) when a in 0xF1..0xF3 and b in 0x80..0xBF and c in 0x80..0xBF,
    do: 3

  defp bad(<<0xF0, b, c, _::binary>>) when b in 0x90..0xBF and c in 0x80..0xBF, do: 3
  defp bad(<<0xF4, b, c, _::binary>>) when b in 0x80..0x8F and c in 0x80..0xBF, do: 3
  defp bad(<<a, b, _::binary>>) when a in 0xF1..0xF3 and b in 0x80..0xBF, do: 2
  defp bad(<<0xF0, b, _::binary>>) when b in 0x90..0xBF, do: 2
  defp bad(<<0xF4, b, _::binary>>) when b in 0x80..0x8F, do: 2
  defp bad(<<0xE0, b, _::binary>>) when b in 0xA0..0xBF, do: 2
  defp bad(<<0xED, b, _::binary>>) when b in 0x80..0x9F, do: 2
  defp bad(<<a, b, _::binary>>) when a in 0xE1..0xEF and a != 0xED and b in 0x80..0xBF, do: 2
  defp bad(_one), do: 1

  @doc "A float as JavaScript prints it."
  @spec float(float() | :nan | :infinity | :neg_infinity) :: String.t()
  def float(:nan), do: "NaN"
  def float(:infinity), do: "Infinity"
  def float(:neg_infinity), do: "-Infinity"
  def float(number) when number == 0, do: "0"
  def float(number) when number < 0, do: "-" <> float(-number)

  def float(number) do
    {digits, exponent} = number |> :erlang.float_to_binary([:short]) |> digits_and_power()
    count = byte_size(digits)

    cond do
      count <= exponent and exponent <= 21 ->
        digits <> String.duplicate("0", exponent - count)

      exponent in 1..21 ->
        {whole, fraction} = String.split_at(digits, exponent)
        whole <> "." <> fraction

      exponent in -5..0 ->
        "0." <> String.duplicate("0", -exponent) <> digits

      true ->
        scientific(digits, exponent - 1)
    end
  end

  defp scientific(<<first, rest::binary>>, exponent) do
    point = if rest == "", do: "", else: "."
    sign = if exponent < 0, do: "-", else: "+"
    <<first>> <> point <> rest <> "e" <> sign <> Integer.to_string(abs(exponent))
  end

  # The digits without zeros around them, and the power of ten that "0." before them is times.
  defp digits_and_power(text) do
    {mantissa, exponent} =
      case String.split(text, "e") do
        [mantissa] -> {mantissa, 0}
        [mantissa, exponent] -> {mantissa, String.to_integer(exponent)}
      end

    [whole, fraction] = String.split(mantissa, ".")
    digits = whole <> fraction
    significant = String.trim_leading(digits, "0")
    leading = byte_size(digits) - byte_size(significant)
    {String.trim_trailing(significant, "0"), exponent + byte_size(whole) - leading}
  end

  # Numbers of more digits fit no guest, and reading a million of them would take seconds.
  @longest 19
  # What is behind so many digits does not change a float.
  @significant 800

  @doc "As JavaScript's parseInt with base 10, or nil for its NaN and for more than 64 bits."
  @spec parse_integer(String.t()) :: integer() | nil
  def parse_integer(text) do
    case trim_leading(text) do
      "-" <> rest -> with n when is_integer(n) <- digits(rest, 0, 0, false), do: -n
      "+" <> rest -> digits(rest, 0, 0, false)
      rest -> digits(rest, 0, 0, false)
    end
  end

  defp digits(_text, _n, count, _any) when count > @longest, do: nil
  defp digits("0" <> rest, 0, 0, _any), do: digits(rest, 0, 0, true)

  defp digits(<<digit, rest::binary>>, n, count, _any) when digit in ?0..?9,
    do: digits(rest, 10 * n + digit - ?0, count + 1, true)

  defp digits(_rest, n, _count, true), do: n
  defp digits(_rest, _n, _count, false), do: nil

  # JavaScript's white space, which has U+FEFF and has no U+0085.
  defp trim_leading(<<space::utf8, rest::binary>>)
       when space in 0x09..0x0D or space == 0x20 or space == 0xA0 or space == 0x1680 or
              space in 0x2000..0x200A or space in 0x2028..0x2029 or
              space in [0x202F, 0x205F, 0x3000, 0xFEFF],
       do: trim_leading(rest)

  defp trim_leading(text), do: text

  @number ~r/\A([+-]?)(?:(Infinity)|([0-9]+)(?:\.([0-9]*))?|\.([0-9]+))(?:[eE]([+-]?[0-9]+))?/

  @doc "As JavaScript's parseFloat, with nil for its NaN."
  @spec parse_float(String.t()) :: float() | :infinity | :neg_infinity | nil
  def parse_float(text) do
    case Regex.run(@number, trim_leading(text)) do
      nil -> nil
      [_all, sign, "Infinity" | _] -> signed(sign, :infinity)
      [_all, sign, "", whole] -> decimal(sign, whole, "", "0")
      [_all, sign, "", whole, fraction] -> decimal(sign, whole, fraction, "0")
      [_all, sign, "", "", "", fraction] -> decimal(sign, "", fraction, "0")
      [_all, sign, "", whole, a, b, exponent] -> decimal(sign, whole, a <> b, exponent)
    end
  end

  defp decimal(sign, whole, fraction, exponent) do
    digits = String.trim_leading(whole <> fraction, "0")
    leading = byte_size(whole <> fraction) - byte_size(digits)
    # The power of ten that "0." before the digits is times.
    power = exponent(exponent) + byte_size(whole) - leading
    digits = binary_part(digits, 0, min(byte_size(digits), @significant))

    cond do
      digits == "" or power < -330 -> signed(sign, 0.0)
      power > 310 -> signed(sign, :infinity)
      true -> signed(sign, to_float("0." <> digits <> "e" <> Integer.to_string(power)))
    end
  end

  defp exponent(text) when byte_size(text) <= @longest, do: String.to_integer(text)
  defp exponent("-" <> _), do: -0x80000000_00000000
  defp exponent(_text), do: 0x80000000_00000000

  defp to_float(text) do
    String.to_float(text)
  rescue
    # The power is near its limits, so it is the upper one that was passed.
    ArgumentError -> :infinity
  end

  defp signed("-", :infinity), do: :neg_infinity
  defp signed("-", number), do: -number
  defp signed(_plus, number), do: number

  @doc "As JavaScript's substring; a character that it cuts in two is U+FFFD."
  @spec substring(String.t(), integer(), integer()) :: String.t()
  def substring(text, first, last) do
    units = utf16(text)
    count = div(byte_size(units), 2)
    [first, last] = Enum.sort([clamp(first, count), clamp(last, count)])
    units |> binary_part(2 * first, 2 * (last - first)) |> whole() |> from_utf16()
  end

  defp clamp(n, count), do: n |> max(0) |> min(count)

  # Only the ends can be halves of a pair.
  defp whole(<<unit::16, rest::binary>>) when unit in 0xDC00..0xDFFF,
    do: whole_end(<<0xFFFD::16, rest::binary>>)

  defp whole(units), do: whole_end(units)

  defp whole_end(units) when units == "", do: ""

  defp whole_end(units) do
    {before, <<unit::16>>} = :erlang.split_binary(units, byte_size(units) - 2)
    if unit in 0xD800..0xDBFF, do: <<before::binary, 0xFFFD::16>>, else: units
  end

  @doc "The position of the first occurrence in code units, or -1."
  @spec index_of(String.t(), String.t()) :: integer()
  def index_of(_text, ""), do: 0

  def index_of(text, part) do
    case :binary.match(text, part) do
      {position, _length} -> text |> binary_part(0, position) |> utf16() |> byte_size() |> div(2)
      :nomatch -> -1
    end
  end

  defp utf16(text), do: :unicode.characters_to_binary(text, :utf8, :utf16)
  defp from_utf16(units), do: :unicode.characters_to_binary(units, :utf16, :utf8)

  @doc "The order of two strings by their code units."
  @spec compare(String.t(), String.t()) :: -1 | 0 | 1
  def compare(same, same), do: 0

  def compare(a, b) do
    # Big-endian units in the order of their bytes.
    if utf16(a) < utf16(b), do: -1, else: 1
  end

  @doc "All occurrences of `part` replaced; an empty one is between all characters."
  @spec replace(String.t(), String.t(), String.t()) :: String.t()
  def replace(text, "", by), do: Enum.join([by | Enum.map(String.codepoints(text), &(&1 <> by))])
  def replace(text, part, by), do: :binary.replace(text, part, by, [:global])

  @doc "The pieces between the separators; an empty one separates all characters."
  @spec split(String.t(), String.t()) :: [String.t()]
  def split(text, ""), do: String.codepoints(text)
  def split(text, separator), do: :binary.split(text, separator, [:global])
end
