defmodule Beamr.Host.Clean.JSONTest do
  use Beamr.Case, async: true

  alias Beamr.Host.Clean.JSON

  for {text, term} <- [
        {"null", nil},
        {" [ true , false ] ", [true, false]},
        {"-0", 0},
        {"12", 12},
        {"1.5e2", 150.0},
        {"-2E-1", -0.2},
        {"[]", []},
        {"{}", %{}},
        {~S|{"a":{"b":[1]},"a":2}|, %{"a" => 2}},
        {~S|"\"\\\/\b\f\n\r\t"|, "\"\\/\b\f\n\r\t"},
        {~S|"\u00e9\ud83d\ude00"|, "é😀"},
        {~S|"\ud83d"|, "\uFFFD"},
        {~S|"\ude00x"|, "\uFFFDx"},
        {~S|"\ud83d\u0041"|, "\uFFFDA"},
        {~S|"é"|, "é"}
      ] do
    test "reads #{text}" do
      assert JSON.decode(unquote(text)) == {:ok, unquote(Macro.escape(term))}
    end
  end

  for text <- [
        "",
        "nul",
        "nulll",
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "1e999",
        "NaN",
        "[1,]",
        "[1 2]",
        "[",
        "{\"a\"}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\u12\"",
        "\"\n\"",
        "1 2"
      ] do
    test "refuses #{inspect(text)}" do
      assert JSON.decode(unquote(text)) == :error
    end
  end

  test "refuses what is too deep, or has too many digits" do
    deep = fn n -> String.duplicate("[", n) <> String.duplicate("]", n) end
    assert {:ok, [_]} = JSON.decode(deep.(500))
    assert JSON.decode(deep.(513)) == :error
    assert JSON.decode(String.duplicate("[", 1_000_000)) == :error
    assert JSON.decode(String.duplicate("9", 1_000_000)) == :error
  end

  test "writes" do
    for {term, text} <- [
          {[nil, true, :atom, 1, 1.0, 1.0e21, :nan], ~S|[null,true,"atom",1,1,1e+21,null]|},
          {[a: 1, b: []], ~S|{"a":1,"b":[]}|},
          {[{"z", 1}, {"a", 2}], ~S|{"z":1,"a":2}|},
          {%{1 => %{}}, ~S|{"1":{}}|},
          {"\"\\\n\r\t\u0001é\u007F", ~S|"\"\\\n\r\t\u0001é| <> "\u007F\""},
          {<<"a", 0xFF>>, "\"a\uFFFD\""},
          {~D[2024-02-29], ~S|"2024-02-29"|}
        ] do
      assert JSON.encode(term) == text
    end
  end

  test "reads what it wrote" do
    for_random_cases(200, fn ->
      term = random_term(4)
      assert JSON.decode(JSON.encode(term)) == {:ok, term}
    end)
  end

  defp random_term(depth) do
    case :rand.uniform(if(depth == 0, do: 5, else: 7)) do
      1 ->
        Enum.random([nil, true, false])

      2 ->
        random_integer(-1_000_000, 1_000_000)

      3 ->
        :rand.uniform() * 1.0e10

      4 ->
        random_text()

      5 ->
        ""

      6 ->
        for _ <- 1..random_integer(0, 4)//1, do: random_term(depth - 1)

      7 ->
        for _ <- 1..random_integer(0, 4)//1,
            into: %{},
            do: {random_text(), random_term(depth - 1)}
    end
  end

  defp random_text do
    for _ <- 1..random_integer(0, 10)//1,
        into: "",
        do: <<Enum.random([0, 9, ?", ?\\, ?a, 0x7F, 0xE9, 0x2028, 0xFFFD, 0x1F600])::utf8>>
  end
end
