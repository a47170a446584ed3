defmodule Beamr.Host.Clean.JSON do
  @moduledoc false
  # JSON (RFC 8259), as much as the hosts need: Elixir 1.14 has none, and Beamr depends on nothing.

  alias Beamr.Host.Clean.Text

  # Deeper values are refused: no parameter of a query is that deep.
  @max_depth 512
  @max_digits 1_000

  @doc """
  A term as JSON. Maps and lists of pairs are objects, the latter in their order; NaN and the
  infinities are null, as in JavaScript; of other structs the text is taken.
  """
  @spec encode(term()) :: String.t()
  def encode(term), do: term |> value() |> IO.iodata_to_binary()

  defp value(nil), do: "null"
  defp value(true), do: "true"
  defp value(false), do: "false"
  defp value(float) when float in [:nan, :infinity, :neg_infinity], do: "null"
  defp value(atom) when is_atom(atom), do: string(Atom.to_string(atom))
  defp value(number) when is_integer(number), do: Integer.to_string(number)
  defp value(number) when is_float(number), do: Text.float(number)
  defp value(text) when is_binary(text), do: string(text)
  defp value(struct) when is_struct(struct), do: string(to_string(struct))
  defp value(map) when is_map(map), do: object(map)

  defp value([{key, _value} | _] = pairs) when is_binary(key) or is_atom(key), do: object(pairs)

  defp value(list) when is_list(list),
    do: [?[, list |> Enum.map(&value/1) |> Enum.intersperse(?,), ?]]

  defp object(pairs) do
    members = for {key, value} <- pairs, do: [string(to_string(key)), ?:, value(value)]
    [?{, Enum.intersperse(members, ?,), ?}]
  end

  defp string(text), do: [?", text |> Text.valid() |> escape(), ?"]

  # Runs of plain bytes are taken as they are.
  defp escape(text) do
    case :binary.match(text, escaped()) do
      :nomatch ->
        text

      {position, 1} ->
        {plain, <<byte, rest::binary>>} = :erlang.split_binary(text, position)
        [plain, escaped(byte), escape(rest)]
    end
  end

  defp escaped, do: [<<?">>, <<?\\>>] ++ for(byte <- 0..0x1F, do: <<byte>>)

  defp escaped(?"), do: "\\\""
  defp escaped(?\\), do: "\\\\"
  defp escaped(?\n), do: "\\n"
  defp escaped(?\r), do: "\\r"
  defp escaped(?\t), do: "\\t"
  defp escaped(byte), do: ["\\u", byte |> Integer.to_string(16) |> String.pad_leading(4, "0")]

  @doc "The term of a JSON text. Objects are maps with strings as keys."
  @spec decode(binary()) :: {:ok, term()} | :error
  def decode(text) do
    {term, rest} = text |> space() |> decode(0)
    if space(rest) == "", do: {:ok, term}, else: :error
  catch
    :invalid -> :error
  end

  defp decode(_text, @max_depth), do: throw(:invalid)
  defp decode("null" <> rest, _depth), do: {nil, rest}
  defp decode("true" <> rest, _depth), do: {true, rest}
  defp decode("false" <> rest, _depth), do: {false, rest}
  defp decode("\"" <> rest, _depth), do: text(rest, [])

  defp decode("[" <> rest, depth) do
    case space(rest) do
      "]" <> rest -> {[], rest}
      rest -> elements(rest, depth + 1, [])
    end
  end

  defp decode("{" <> rest, depth) do
    case space(rest) do
      "}" <> rest -> {%{}, rest}
      rest -> members(rest, depth + 1, %{})
    end
  end

  defp decode(text, _depth) do
    case Regex.run(~r/\A(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][+-]?[0-9]+)?/, text) do
      [_all, whole] when byte_size(whole) > @max_digits -> throw(:invalid)
      [all, whole] -> {String.to_integer(whole), after_it(text, all)}
      [all | _] -> {float(all), after_it(text, all)}
      nil -> throw(:invalid)
    end
  end

  defp after_it(text, taken),
    do: binary_part(text, byte_size(taken), byte_size(text) - byte_size(taken))

  defp float(text) do
    case Text.parse_float(text) do
      number when is_float(number) -> number
      _too_large -> throw(:invalid)
    end
  end

  defp elements(text, depth, done) do
    {element, rest} = decode(text, depth)

    case space(rest) do
      "," <> rest -> rest |> space() |> elements(depth, [element | done])
      "]" <> rest -> {Enum.reverse(done, [element]), rest}
      _other -> throw(:invalid)
    end
  end

  defp members("\"" <> rest, depth, done) do
    {key, rest} = text(rest, [])

    with ":" <> rest <- space(rest) do
      {member, rest} = rest |> space() |> decode(depth)
      done = Map.put(done, key, member)

      case space(rest) do
        "," <> rest -> rest |> space() |> members(depth, done)
        "}" <> rest -> {done, rest}
        _other -> throw(:invalid)
      end
    else
      _other -> throw(:invalid)
    end
  end

  defp members(_text, _depth, _done), do: throw(:invalid)

  # The rest of a string behind its quotation mark.
  defp text(bytes, done) do
    case :binary.match(bytes, escaped()) do
      {position, 1} ->
        {plain, <<byte, rest::binary>>} = :erlang.split_binary(bytes, position)
        ended(byte, rest, [done, plain])

      :nomatch ->
        throw(:invalid)
    end
  end

  defp ended(?", rest, done), do: {done |> IO.iodata_to_binary() |> Text.valid(), rest}

  defp ended(?\\, <<?u, rest::binary>>, done) do
    {character, rest} = unicode(rest)
    text(rest, [done, character])
  end

  defp ended(?\\, <<byte, rest::binary>>, done), do: text(rest, [done, unescaped(byte)])
  defp ended(_control, _rest, _done), do: throw(:invalid)

  defp unescaped(byte) when byte in [?", ?\\, ?/], do: <<byte>>
  defp unescaped(?b), do: "\b"
  defp unescaped(?f), do: "\f"
  defp unescaped(?n), do: "\n"
  defp unescaped(?r), do: "\r"
  defp unescaped(?t), do: "\t"
  defp unescaped(_byte), do: throw(:invalid)

  # A pair of surrogates is one character, half of one is U+FFFD.
  defp unicode(text) do
    case unit(text) do
      {high, "\\u" <> rest = all} when high in 0xD800..0xDBFF ->
        case unit(rest) do
          {low, rest} when low in 0xDC00..0xDFFF ->
            {<<0x10000 + (high - 0xD800) * 0x400 + low - 0xDC00::utf8>>, rest}

          _other ->
            {"\uFFFD", all}
        end

      {half, rest} when half in 0xD800..0xDFFF ->
        {"\uFFFD", rest}

      {unit, rest} ->
        {<<unit::utf8>>, rest}
    end
  end

  defp unit(<<digits::binary-4, rest::binary>>) do
    case Regex.run(~r/\A[0-9A-Fa-f]{4}\z/, digits) do
      [_all] -> {String.to_integer(digits, 16), rest}
      nil -> throw(:invalid)
    end
  end

  defp unit(_short), do: throw(:invalid)

  defp space(<<byte, rest::binary>>) when byte in [?\s, ?\t, ?\n, ?\r], do: space(rest)
  defp space(rest), do: rest
end
