defmodule Beamr.RealGuests.LlhttpTest do
  # llhttp, Node's HTTP parser, as npm's undici has it. It parses what it is fed in whatever parts,
  # and calls back with addresses in its memory.
  use Beamr.Case, async: true

  @moduletag :real_guests

  # llhttp's numbers.
  @response 2
  @ok 0
  @unexpected_content_length 4
  @invalid_constant 8
  @invalid_header_token 10
  @invalid_chunk_size 12
  @invalid_status 13
  @invalid_eof_state 14
  @paused 21
  @user 24

  @spans ~w(url status header_field header_value body)

  setup_all do
    {:ok, compiled: Beamr.RealGuest.module!("llhttp")}
  end

  # What the parser tells of is sent to the process that feeds it: it runs in that very process.
  defp parser(module, overrides \\ %{}) do
    spans =
      for name <- @spans, into: %{} do
        {"wasm_on_" <> name, fn wasm, _parser, at, length -> tell(name, wasm, at, length) end}
      end

    imports =
      Map.merge(spans, %{
        "wasm_on_message_begin" => fn _wasm, _parser -> tell(:begin) end,
        "wasm_on_headers_complete" => fn _wasm, _parser, status, upgrade, keep_alive ->
          tell({:headers_complete, status, upgrade == 1, keep_alive == 1})
        end,
        "wasm_on_message_complete" => fn _wasm, _parser -> tell(:complete) end
      })

    wasm = Beamr.instantiate!(module, imports: %{"env" => Map.merge(imports, overrides)})
    {wasm, hd(Beamr.call!(wasm, "llhttp_alloc", [@response]))}
  end

  defp tell(name, wasm, at, length) do
    tell({String.to_atom(name), Beamr.IO.read!(wasm, at, length)})
  end

  defp tell(event) do
    send(self(), {:parsed, event})
    0
  end

  defp feed({wasm, parser}, bytes) do
    Beamr.IO.with_bytes!(wasm, bytes, fn pointer, length ->
      [code] = Beamr.call!(wasm, "llhttp_execute", [parser, pointer, length])
      code
    end)
  end

  defp finish({wasm, parser}), do: hd(Beamr.call!(wasm, "llhttp_finish", [parser]))

  defp reason({wasm, parser}) do
    [pointer] = Beamr.call!(wasm, "llhttp_get_error_reason", [parser])
    Beamr.IO.read_string!(wasm, pointer)
  end

  # What has been parsed until now; the parts of one text, which come as they were fed, are joined.
  defp parsed(events \\ []) do
    receive do
      {:parsed, event} -> parsed([event | events])
    after
      0 -> events |> Enum.reverse() |> join()
    end
  end

  defp join([{name, one}, {name, two} | rest]) when is_atom(name),
    do: join([{name, one <> two} | rest])

  defp join([event | rest]), do: [event | join(rest)]
  defp join([]), do: []

  @message "HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nX-Empty:\r\n" <>
             "Content-Length: 5\r\n\r\nsorry"

  @events [
    :begin,
    {:status, "Not Found"},
    {:header_field, "Content-Type"},
    {:header_value, "text/plain"},
    {:header_field, "X-Empty"},
    {:header_value, ""},
    {:header_field, "Content-Length"},
    {:header_value, "5"},
    {:headers_complete, 404, false, true},
    {:body, "sorry"},
    :complete
  ]

  test "a response is parsed", %{compiled: module} do
    assert feed(parser(module), @message) == @ok
    assert parsed() == @events
  end

  test "a response is the same in whatever parts it comes", %{compiled: module} do
    http = parser(module)

    for_random_cases(50, fn ->
      @message |> cut([]) |> Enum.each(&assert feed(http, &1) == @ok)
      assert parsed() == @events
    end)
  end

  defp cut("", parts), do: Enum.reverse(parts)

  defp cut(bytes, parts) do
    {part, rest} = String.split_at(bytes, random_integer(1, 40))
    cut(rest, [part | parts])
  end

  test "chunks are put together, and the next response follows", %{compiled: module} do
    http = parser(module)
    head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert feed(http, head <> "4\r\nWiki\r\n6;x=y\r\npedia \r\n0\r\n\r\n" <> @message) == @ok
    {first, [:complete | second]} = Enum.split_while(parsed(), &(&1 != :complete))
    assert {:body, "Wikipedia "} in first
    assert second == @events
  end

  test "a response without a length ends with the connection", %{compiled: module} do
    http = parser(module)
    assert feed(http, "HTTP/1.0 200 OK\r\n\r\nall of it") == @ok
    refute :complete in parsed()
    assert finish(http) == @ok
    assert parsed() == [:complete]
  end

  test "what is no response is refused, with the reason", %{compiled: module} do
    for {code, bytes} <- [
          {@invalid_constant, "SMTP ready\r\n"},
          {@invalid_status, "HTTP/1.1 2x0 OK\r\n\r\n"},
          {@invalid_header_token, "HTTP/1.1 200 OK\r\nbad header\0: 1\r\n\r\n"},
          {@invalid_chunk_size, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"},
          {@unexpected_content_length,
           "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"}
        ] do
      http = parser(module)
      assert {feed(http, bytes), bytes} == {code, bytes}
      assert reason(http) =~ ~r/\w/
    end
  end

  test "a response that is cut off is noticed", %{compiled: module} do
    http = parser(module)
    assert feed(http, binary_part(@message, 0, byte_size(@message) - 1)) == @ok
    assert finish(http) == @invalid_eof_state
  end

  test "random bytes are parsed or refused, and break nothing", %{compiled: module} do
    {wasm, _parser} = parser(module)

    for_random_cases(100, fn ->
      http = {wasm, hd(Beamr.call!(wasm, "llhttp_alloc", [@response]))}
      at = random_integer(0, byte_size(@message) - 1)
      assert feed(http, overwrite(@message, at, :rand.bytes(1))) in 0..38
      Beamr.call!(wasm, "llhttp_free", [elem(http, 1)])
    end)
  end

  test "a callback can pause the parser, and stop it", %{compiled: module} do
    pause = parser(module, %{"wasm_on_message_complete" => fn _wasm, _parser -> @paused end})
    assert feed(pause, @message <> @message) == @paused
    assert Enum.count(parsed(), &(&1 == :begin)) == 1

    stop = parser(module, %{"wasm_on_body" => fn _wasm, _parser, _at, _length -> -1 end})
    assert feed(stop, @message) == @user
  end

  test "a callback that raises ends the call", %{compiled: module} do
    {wasm, parser} = parser(module, %{"wasm_on_status" => fn _, _, _, _ -> raise "no" end})

    {:ok, result} =
      Beamr.IO.with_bytes(wasm, @message, fn pointer, length ->
        Beamr.call(wasm, "llhttp_execute", [parser, pointer, length])
      end)

    assert {:error, %Beamr.ImportError{reason: %RuntimeError{message: "no"}}} = result
  end
end
