defmodule Beamr.Host.Clean.StringsTest do
  use Beamr.CleanCase

  # Both forms of strings and every spelling answer the same.
  defp strings(names, args, result) do
    answers =
      for name <- names, form <- [:pair, :pointer] do
        clean(name, args, result, form: form, grant: [:strings])
      end

    assert [answer] = Enum.uniq(answers)
    answer
  end

  for {names, args, result} <- [
        {~w(string_concat string.concat), ["Hello, ", "wörld"], "Hello, wörld"},
        {~w(string_concat), ["", ""], ""},
        {~w(string_trim string.trim), [" \t\u00A0\u3000 a b \n"], "a b"},
        {~w(string_to_upper string.toUpperCase string_toUpperCase), ["straße é"], "STRASSE É"},
        {~w(string_to_lower string.toLowerCase string_toLowerCase), ["ÀΣ ΟΔΟΣ"], "àς οδος"},
        {~w(string_replace string.replace), ["a-b-c", "-", "+"], "a+b+c"},
        {~w(string_replace), ["ab", "", "-"], "-a-b-"},
        {~w(string_replace), ["aaa", "aa", "b"], "ba"},
        {~w(string_split string.split), ["a,\"b,", ","], ~S|["a","\"b",""]|},
        {~w(string_split), ["aé", ""], ~S|["a","é"]|},
        {~w(string_split), ["", ","], ~S|[""]|}
      ] do
    test "#{hd(names)} of #{inspect(args)}" do
      assert strings(unquote(names), unquote(args), :string) == unquote(result)
    end
  end

  for {text, first, last, result} <- [
        {"hello", 1, 3, "el"},
        {"hello", 3, 1, "el"},
        {"hello", -5, 2, "he"},
        {"hello", 2, 99, "llo"},
        {"hello", 2, 2, ""},
        {"héllo", 1, 2, "é"},
        {"a😀b", 1, 3, "😀"},
        {"a😀b", 0, 2, "a\uFFFD"},
        {"a😀b", 2, 4, "\uFFFDb"},
        {"a😀b", 2, 3, "\uFFFD"}
      ] do
    test "string_substring of #{inspect(text)} from #{first} to #{last}" do
      args = [unquote(text), {:i32, unquote(first)}, {:i32, unquote(last)}]
      names = ~w(string_substring string.substring)
      assert strings(names, args, :string) == unquote(result)
    end
  end

  for {text, value} <- [
        {"12abc", 12},
        {" 7", 7},
        {"abc", 0},
        {"", 0},
        {"-5", -5},
        {"+5", 5},
        {"- 5", 0},
        {"\n\t\uFEFF42", 42},
        {"0x10", 0},
        {"1e3", 1},
        {"3.9", 3},
        {"2147483647", 2_147_483_647}
      ] do
    test "string_to_int of #{inspect(text)}" do
      for name <- ["string_to_int", "string.toInteger"],
          {form, type} <- [pair: :i64, pointer: :i32] do
        assert clean(name, [unquote(text)], type, form: form, grant: [:strings]) == unquote(value)
      end
    end
  end

  test "string_to_int has 64 bits where its type has, and 0 for more" do
    int = &clean("string_to_int", [&1], &2, grant: [:strings])
    assert int.("-9223372036854775808", :i64) == -9_223_372_036_854_775_808
    assert int.("9223372036854775808", :i64) == 0
    assert int.("2147483648", :i32) == 0
    assert int.(String.duplicate("9", 100_000), :i64) == 0
  end

  for {text, value} <- [
        {"3.14abc", 3.14},
        {"  .5", 0.5},
        {"5.", 5.0},
        {"-1e3", -1000.0},
        {"1e", 1.0},
        {"1e400", :infinity},
        {"-Infinity", :neg_infinity},
        {"1e-400", 0.0},
        {"abc", 0.0},
        {"", 0.0},
        {"NaN", 0.0},
        {"0.1", 0.1},
        {"1.7976931348623157e308", 1.7976931348623157e308}
      ] do
    test "string_to_float of #{inspect(text)}" do
      names = ~w(string_to_float string.toNumber)
      assert strings(names, [unquote(text)], :f64) == unquote(value)
    end
  end

  test "string_to_float reads endless digits" do
    assert strings(["string_to_float"], ["1." <> String.duplicate("3", 50_000)], :f64) == 4 / 3
    assert strings(["string_to_float"], ["1e" <> String.duplicate("9", 5_000)], :f64) == :infinity
    assert strings(["string_to_float"], ["1e-" <> String.duplicate("9", 5_000)], :f64) == 0.0
  end

  test "string_to_bool is true for true and 1" do
    for {text, value} <- [
          {"true", 1},
          {" TRUE\n", 1},
          {"1", 1},
          {"false", 0},
          {"", 0},
          {"yes", 0}
        ] do
      assert strings(~w(string_to_bool string.toBoolean), [text], :i32) == value
    end
  end

  test "string_compare orders by code units" do
    for {a, b, order} <- [
          {"a", "b", -1},
          {"b", "a", 1},
          {"a", "a", 0},
          {"", "a", -1},
          {"a", "ab", -1},
          {"Z", "a", -1},
          {"\uFFFD", "😀", 1}
        ] do
      assert strings(["string_compare"], [a, b], :i32) == order
    end
  end

  test "string_index_of counts code units" do
    for {text, part, position} <- [
          {"hello", "l", 2},
          {"hello", "x", -1},
          {"hello", "", 0},
          {"", "x", -1},
          {"a😀b", "b", 3},
          {"éx", "x", 1}
        ] do
      assert strings(["string_index_of"], [text, part], :i32) == position
    end
  end

  test "int_to_string takes 64 bits and 32" do
    for name <- ["int_to_string", "integer.toString"] do
      assert clean(name, [i64: -9_007_199_254_740_993], :string, grant: [:strings]) ==
               "-9007199254740993"

      assert clean(name, [i32: -42], :string, grant: [:strings]) == "-42"
    end
  end

  for {number, text} <- [
        {1.0, "1"},
        {3.14159, "3.14159"},
        {1.0e21, "1e+21"},
        {1.0e20, "100000000000000000000"},
        {1.5e22, "1.5e+22"},
        {1.0e-6, "0.000001"},
        {1.0e-7, "1e-7"},
        {-2.5, "-2.5"},
        {-0.0, "0"},
        {0.1, "0.1"},
        {5.0e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {:nan, "NaN"},
        {:infinity, "Infinity"},
        {:neg_infinity, "-Infinity"}
      ] do
    test "float_to_string of #{inspect(number)}" do
      for name <- ["float_to_string", "number.toString"] do
        assert clean(name, [f64: unquote(number)], :string, grant: [:strings]) == unquote(text)
      end
    end
  end

  test "bool_to_string takes anything but 0 for true" do
    for name <- ["bool_to_string", "boolean.toString"],
        {word, text} <- [{0, "false"}, {1, "true"}, {-1, "true"}] do
      assert clean(name, [i32: word], :string, grant: [:strings]) == text
    end
  end

  test "bad UTF-8 is replaced" do
    bad = <<"a", 0xF0, 0x9F, 0x98, "b", 0xFF, 0xC0, 0xAF, 0xED, 0xA0, 0x80>>
    good = "a\uFFFDb" <> String.duplicate("\uFFFD", 6)
    assert strings(["string_concat"], [bad, ""], :string) == good
  end

  test "a string outside the memory makes its function fail" do
    for {name, result, answer} <- [
          {"string_trim", :string, ""},
          {"string_to_int", :i64, 0},
          {"string_to_float", :f64, 0.0},
          {"string_to_bool", :i32, 0}
        ] do
      args = [i32: -1, i32: 1]
      assert clean(name, args, result, grant: [:strings]) == answer
    end

    # A pointer to a length that leads outside.
    assert clean("string_trim", [i32: 4 * 65_536 - 2], :string, grant: [:strings]) == ""
    args = [i32: 0, i32: -1, i32: 0, i32: 0]
    assert clean("string_index_of", args, :i32, grant: [:strings]) == -1
  end

  test "floats read back as they were printed" do
    for_random_cases(2_000, fn ->
      <<bits::64>> = :crypto.strong_rand_bytes(8)

      case <<bits::64>> do
        <<number::float>> ->
          text = Beamr.Host.Clean.Text.float(number)
          assert Beamr.Host.Clean.Text.parse_float(text) == number

        _not_finite ->
          :ok
      end
    end)
  end
end
