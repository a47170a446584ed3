defmodule Beamr.Host.Clean.Strings do
  @moduledoc """
  Clean's `string` functions, under all their spellings: `string_concat` and `string.concat`,
  `int_to_string` and `integer.toString`.

  Positions, in `string_substring` and `string_index_of`, count UTF-16 code units, and
  `string_compare` goes by them, as in JavaScript; a character that a substring cuts in two is
  U+FFFD. White space and letter case are Unicode's.

  `string_to_int` reads as JavaScript's parseInt does with base 10 and `string_to_float` as its
  parseFloat; what begins with no number, or with one that the result's type cannot hold, is 0.
  `string_to_bool` is true for "true" in any case and "1", with white space around it. An empty
  separator of `string_split` separates all characters.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  alias Beamr.Host.Clean.{JSON, Text}

  @wasm "string_concat, string.concat (string, string) -> string"
  def string_concat(_wasm, a, b), do: a <> b

  @wasm "string_substring, string.substring (string, i32, i32) -> string"
  def string_substring(_wasm, text, first, last), do: Text.substring(text, first, last)

  @wasm "string_trim, string.trim (string) -> string"
  def string_trim(_wasm, text), do: String.trim(text)

  @wasm "string_to_upper, string.toUpperCase, string_toUpperCase (string) -> string"
  def string_to_upper(_wasm, text), do: String.upcase(text)

  # With the sigma at the end of words, which is Unicode's and which Elixir calls Greek.
  @wasm "string_to_lower, string.toLowerCase, string_toLowerCase (string) -> string"
  def string_to_lower(_wasm, text), do: String.downcase(text, :greek)

  @wasm "string_replace, string.replace (string, string, string) -> string"
  def string_replace(_wasm, text, part, by), do: Text.replace(text, part, by)

  @wasm "string_split, string.split (string, string) -> string"
  def string_split(_wasm, text, separator), do: text |> Text.split(separator) |> JSON.encode()

  @wasm "int_to_string, integer.toString (integer) -> string"
  def int_to_string(_wasm, n), do: Integer.to_string(n)

  @wasm "float_to_string, number.toString (float) -> string"
  def float_to_string(_wasm, number), do: Text.float(number)

  @wasm "bool_to_string, boolean.toString (boolean) -> string"
  def bool_to_string(_wasm, truth), do: to_string(truth)

  @wasm "string_to_int, string.toInteger (string) -> integer"
  def string_to_int(_wasm, text), do: Text.parse_integer(text) || :error

  @wasm "string_to_float, string.toNumber (string) -> float"
  def string_to_float(_wasm, text), do: Text.parse_float(text) || :error

  @wasm "string_to_bool, string.toBoolean (string) -> boolean"
  def string_to_bool(_wasm, text), do: String.downcase(String.trim(text)) in ["true", "1"]

  @wasm "string_compare (string, string) -> order"
  def string_compare(_wasm, a, b), do: Text.compare(a, b)

  @wasm "string_index_of (string, string) -> position"
  def string_index_of(_wasm, text, part), do: Text.index_of(text, part)
end
