defmodule Beamr.Host.Clean.HTTPTest do
  use Beamr.CleanCase

  # A server that answers with what it was asked: the method, some headers and the body; and with
  # a redirect to what is behind /to/STATUS/.
  setup do
    {:ok, listener} =
      :gen_tcp.listen(0, [:binary, ip: {127, 0, 0, 1}, active: false, packet: :http_bin])

    {:ok, port} = :inet.port(listener)
    start_supervised!({Task, fn -> accept(listener) end})
    {:ok, port: port, url: "http://127.0.0.1:#{port}"}
  end

  defp accept(listener) do
    with {:ok, socket} <- :gen_tcp.accept(listener) do
      pid = spawn_link(fn -> receive(do: (:go -> serve(socket))) end)
      :ok = :gen_tcp.controlling_process(socket, pid)
      send(pid, :go)
      accept(listener)
    end
  end

  defp serve(socket) do
    {:ok, {:http_request, method, {:abs_path, path}, _}} = :gen_tcp.recv(socket, 0)
    headers = headers(socket, %{})
    length = String.to_integer(headers["content-length"] || "0")
    :inet.setopts(socket, packet: :raw)
    body = if length > 0, do: elem(:gen_tcp.recv(socket, length), 1), else: ""
    if path == "/endless", do: pour(socket)
    :gen_tcp.send(socket, answer(to_string(method), path, headers, body))
    :gen_tcp.close(socket)
  end

  defp pour(socket) do
    :gen_tcp.send(socket, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    drops = Stream.repeatedly(fn -> :gen_tcp.send(socket, :binary.copy("x", 10_000)) end)
    Enum.find(drops, &(&1 != :ok))
  end

  defp headers(socket, headers) do
    case :gen_tcp.recv(socket, 0) do
      {:ok, {:http_header, _, name, _, value}} ->
        headers(socket, Map.put(headers, String.downcase(to_string(name)), value))

      {:ok, :http_eoh} ->
        headers
    end
  end

  defp answer(_method, "/to/" <> <<status::binary-3, "/", to::binary>>, _headers, _body) do
    "HTTP/1.1 #{status} Moved\r\nlocation: #{to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
  end

  defp answer(_method, "/loop", _headers, _body) do
    "HTTP/1.1 302 Found\r\nlocation: /loop\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
  end

  defp answer(_method, "/silence", _headers, _body), do: Process.sleep(:infinity)
  defp answer(_method, "/missing", _headers, _body), do: ok("gone", "404 Not Found")
  defp answer(_method, "/bad", _headers, _body), do: ok(<<"a", 0xFF>>)

  defp answer("HEAD", _path, _headers, _body),
    do: "HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\n"

  defp answer(method, path, headers, body) do
    shown =
      for name <- ~w(content-type user-agent authorization x-a),
          value = headers[name],
          do: " #{name}=#{value}"

    ok("#{method} #{path}#{shown} [#{body}]")
  end

  defp ok(text, status \\ "200 OK") do
    "HTTP/1.1 #{status}\r\ncontent-length: #{byte_size(text)}\r\nconnection: close\r\n\r\n#{text}"
  end

  defp http(name, args, opts \\ []) do
    {form, opts} = Keyword.pop(opts, :form, :pair)
    opts = Keyword.merge([allow: ["127.0.0.1"], user_agent: ""], opts)
    clean(name, args, :string, hosts: [{Beamr.Host.Clean.HTTP, opts}], form: form)
  end

  @text "content-type=text/plain; charset=utf-8"

  for {name, args, answer} <- [
        {"http_get", [], "GET /p?q=1 []"},
        {"http_delete", [], "DELETE /p?q=1 []"},
        {"http_options", [], "OPTIONS /p?q=1 []"},
        {"http_head", [], ""},
        {"http_post", ["é"], "POST /p?q=1 #{@text} [é]"},
        {"http_put", ["x"], "PUT /p?q=1 #{@text} [x]"},
        {"http_patch", ["x"], "PATCH /p?q=1 #{@text} [x]"},
        {"http_post_json", ["{}"], "POST /p?q=1 content-type=application/json [{}]"},
        {"http_put_json", ["{}"], "PUT /p?q=1 content-type=application/json [{}]"},
        {"http_patch_json", ["{}"], "PATCH /p?q=1 content-type=application/json [{}]"},
        {"http_post_form", ["a=1"],
         "POST /p?q=1 content-type=application/x-www-form-urlencoded [a=1]"},
        {"http_get_with_headers", [~S|{"X-A": "1"}|], "GET /p?q=1 x-a=1 []"},
        {"http_get_with_headers", ["X-A: 1\nAuthorization: b"],
         "GET /p?q=1 authorization=b x-a=1 []"},
        {"http_post_with_headers", ["x", ~S|{"Content-Type": "a/b", "x-a": 2}|],
         "POST /p?q=1 content-type=a/b x-a=2 [x]"}
      ] do
    test "#{name} with #{inspect(args)}", %{url: url} do
      for form <- [:pair, :pointer] do
        assert http(unquote(name), [url <> "/p?q=1#f" | unquote(args)], form: form) ==
                 unquote(answer)
      end
    end
  end

  test "the body is the answer, whatever the status", %{url: url} do
    assert http("http_get", [url <> "/missing"]) == "gone"
  end

  test "bad UTF-8 is replaced", %{url: url} do
    assert http("http_get", [url <> "/bad"]) == "a\uFFFD"
  end

  test "only hosts that are allowed are asked", %{port: port} do
    url = "http://127.0.0.1:#{port}/"
    local = "http://localhost:#{port}/"

    for {allow, url, allowed} <- [
          {[], url, false},
          {["example.com"], url, false},
          {["127.0.0.1:#{port}"], url, true},
          {["127.0.0.1:1"], url, false},
          {["LOCALHOST"], local, true},
          {["localhost"], String.upcase(local), true},
          {["localhost"], url, false},
          {["*.0.0.1"], url, true},
          {["*.127.0.0.1"], url, false},
          {fn uri -> uri.port == port end, url, true},
          {fn _uri -> :yes end, url, false}
        ] do
      assert {allow, url, http("http_get", [url], allow: allow) != ""} == {allow, url, allowed}
    end
  end

  test "only http and https are spoken, and only to hosts", %{port: port} do
    for url <- [
          "file:///etc/passwd",
          "ftp://127.0.0.1:#{port}/",
          "//127.0.0.1:#{port}/",
          "127.0.0.1:#{port}",
          "http://",
          "http:///x",
          "http://me:secret@127.0.0.1:#{port}/",
          "http://127.0.0.1:#{port}/a b",
          "http://127.0.0.1:#{port}/\r\nX: y",
          "http://[::1",
          "",
          "http://127.0.0.1\\@example.com/"
        ] do
      assert http("http_get", [url], allow: fn _uri -> true end) == ""
    end
  end

  test "redirects are followed", %{url: url} do
    assert http("http_get", [url <> "/to/302//end"]) == "GET /end []"
    assert http("http_get", [url <> "/to/301/" <> url <> "/end"]) == "GET /end []"
    assert http("http_post", [url <> "/to/303//end", "x"]) == "GET /end []"
    assert http("http_post", [url <> "/to/302//end", "x"]) == "GET /end []"
    assert http("http_post", [url <> "/to/307//end", "x"]) == "POST /end #{@text} [x]"
    assert http("http_put", [url <> "/to/308//end", "x"]) == "PUT /end #{@text} [x]"
  end

  test "redirects are checked as requests are", %{url: url, port: port} do
    local = "http://localhost:#{port}"
    assert http("http_get", ["#{url}/to/302/#{local}/end"]) == ""

    assert http("http_get", ["#{url}/to/302/#{local}/end"], allow: ["127.0.0.1", "localhost"]) ==
             "GET /end []"

    assert http("http_get", [url <> "/to/302/file:///etc/passwd"]) == ""
    assert http("http_get", [url <> "/to/302/http://["]) == ""
  end

  test "secrets are not handed on to another host", %{url: url, port: port} do
    headers = "Authorization: secret\nX-A: 1"
    allow = ["127.0.0.1", "localhost"]
    local = "http://localhost:#{port}"
    get = &http("http_get_with_headers", [&1, headers], allow: allow)

    assert get.("#{url}/to/302//end") == "GET /end authorization=secret x-a=1 []"
    assert get.("#{url}/to/302/#{local}/end") == "GET /end x-a=1 []"
  end

  test "redirects end", %{url: url} do
    assert http("http_get", [url <> "/loop"]) == ""
    assert http("http_get", [url <> "/to/302//end"], max_redirects: 0) == ""
  end

  test "a server that says nothing is given up", %{url: url} do
    assert http("http_get", [url <> "/silence"], timeout: 100) == ""
  end

  test "a server that is not there is no answer" do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    assert http("http_get", ["http://127.0.0.1:#{port}/"]) == ""
  end

  test "a response that is too large is none", %{url: url} do
    assert http("http_get", [url <> "/p"], max_bytes: 9) == "GET /p []"
    assert http("http_get", [url <> "/p"], max_bytes: 8) == ""
  end

  test "a response without end is given up, and leaves nothing behind", %{url: url} do
    assert http("http_get", [url <> "/endless"], max_bytes: 1_000_000, timeout: 60_000) == ""
    refute_received {:http, _message}
  end

  test "headers that are none are refused", %{url: url} do
    for headers <- ["no header", "a b: c", ~S|{"x": "a\nb"}|, ~S|{"x": {}}|, ~S|{"": "x"}|] do
      assert http("http_get_with_headers", [url <> "/p", headers]) == ""
    end
  end

  test "headers of the connection are the client's own", %{url: url} do
    headers = "Host: other\nContent-Length: 3\nTransfer-Encoding: chunked\nX-A: 1"
    assert http("http_get_with_headers", [url <> "/p", headers]) == "GET /p x-a=1 []"
  end

  describe "what the guest sets" do
    @guest """
    (module
      (import "env" "http_set_user_agent" (func $agent (param i32 i32)))
      (import "env" "http_set_timeout" (func $timeout (param i32)))
      (import "env" "http_set_max_redirects" (func $redirects (param i32)))
      (import "env" "http_get" (func $get (param i32 i32) (result i32)))
      (memory (export "memory") 4)
      (export "agent" (func $agent))
      (export "timeout" (func $timeout))
      (export "redirects" (func $redirects))
      (export "get" (func $get)))
    """

    defp instance(opts \\ []) do
      opts = Keyword.merge([allow: ["127.0.0.1"]], opts)
      Beamr.instantiate!(@guest, hosts: [{Beamr.Host.Clean.HTTP, opts}])
    end

    defp ask(wasm, function, text) do
      :ok = Beamr.IO.write(wasm, 1024, text)
      Beamr.call!(wasm, function, [1024, byte_size(text)])
    end

    defp get(wasm, url) do
      [pointer] = ask(wasm, "get", url)
      Beamr.Host.Clean.read_string!(wasm, pointer)
    end

    test "is its name", %{url: url} do
      wasm = instance()
      assert get(wasm, url <> "/p") == "GET /p user-agent=Beamr []"
      ask(wasm, "agent", "Clean/1.0")
      # Whichever process asks.
      assert Task.await(Task.async(fn -> get(wasm, url <> "/p") end)) ==
               "GET /p user-agent=Clean/1.0 []"

      ask(wasm, "agent", String.duplicate("x", 300))
      assert get(wasm, url <> "/p") == "GET /p user-agent=#{String.duplicate("x", 256)} []"
      assert get(instance(), url <> "/p") == "GET /p user-agent=Beamr []"
    end

    test "is no header of another name", %{url: url} do
      wasm = instance()
      ask(wasm, "agent", "x\r\nX-A: 1")
      assert get(wasm, url <> "/p") == "GET /p []"
    end

    test "is its patience, up to the host's", %{url: url} do
      wasm = instance()
      Beamr.call!(wasm, "timeout", [100])
      assert get(wasm, url <> "/silence") == ""

      wasm = instance(timeout: 100)
      Beamr.call!(wasm, "timeout", [1_000_000])
      assert get(wasm, url <> "/silence") == ""
    end

    test "is how many redirects it follows, up to the host's", %{url: url} do
      wasm = instance(max_redirects: 1)
      assert get(wasm, url <> "/to/302//p") != ""
      Beamr.call!(wasm, "redirects", [9])
      assert get(wasm, url <> "/to/302//to/302//p") == ""
      Beamr.call!(wasm, "redirects", [-1])
      assert get(wasm, url <> "/to/302//p") == ""
    end
  end

  @tag :capture_log
  test "https is spoken, with servers that can be verified" do
    {:ok, _started} = Application.ensure_all_started(:ssl)
    # By default it signs with SHA-1, which TLS of OTP 27 refuses.
    key = [key: {:namedCurve, :secp256r1}, digest: :sha256]
    chain = %{root: key, intermediates: [], peer: key}

    %{server_config: config} =
      :public_key.pkix_test_data(%{server_chain: chain, client_chain: chain})

    {:ok, listener} =
      :ssl.listen(0, [:binary, ip: {127, 0, 0, 1}, active: false, reuseaddr: true] ++ config)

    {:ok, {_address, port}} = :ssl.sockname(listener)
    start_supervised!(Supervisor.child_spec({Task, fn -> accept_tls(listener) end}, id: :tls))

    url = "https://127.0.0.1:#{port}/"
    assert http("http_get", [url]) == ""
    assert http("http_get", [url], ssl: [verify: :verify_none]) == "secure"
  end

  defp accept_tls(listener) do
    with {:ok, socket} <- :ssl.transport_accept(listener) do
      with {:ok, socket} <- :ssl.handshake(socket), {:ok, _request} <- :ssl.recv(socket, 0) do
        :ssl.send(socket, ok("secure"))
        :ssl.close(socket)
      end

      accept_tls(listener)
    end
  end

  test "options that there are not are refused" do
    assert_raise ArgumentError, fn -> http("http_get", ["http://127.0.0.1/"], allowed: []) end
  end
end
