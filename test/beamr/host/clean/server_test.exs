defmodule Beamr.Host.Clean.ServerTest do
  use Beamr.CleanCase

  alias Beamr.Host.Clean.{HTTPServer, Server}

  # Strings in the data, each behind its length: `name` -> its address.
  @texts %{
    get: {0x100, "GET"},
    post: {0x110, "POST"},
    hello: {0x120, "/hello/:name"},
    echo: {0x140, "/echo"},
    files: {0x150, "/files/*"},
    secret: {0x160, "/secret"},
    admin: {0x170, "/admin"},
    role: {0x180, "admin"},
    name: {0x190, "name"},
    handler: {0x1A0, "say_hello"},
    trap: {0x1C0, "/trap"},
    count: {0x1D0, "/count"},
    x: {0x1E0, "X-Tag"},
    q: {0x1F0, "q"},
    missing: {0x200, "/missing"},
    table: {0x210, "/table"},
    grow: {0x220, "/grow"}
  }

  defp data do
    for {_name, {address, text}} <- @texts do
      length =
        for <<(byte <- <<byte_size(text)::little-32>>)>>, do: "\\#{Base.encode16(<<byte>>)}"

      ~s|(data (i32.const #{address}) "#{length}#{text}")\n|
    end
  end

  # A pair, as the older imports take it.
  defp pair(name) do
    {address, text} = @texts[name]
    "(i32.const #{address + 4}) (i32.const #{byte_size(text)})"
  end

  defp app do
    """
    (module
      (import "env" "_http_listen" (func $listen (param i32) (result i32)))
      (import "env" "_http_route" (func $route (param i32 i32 i32 i32 i32) (result i32)))
      (import "env" "_http_route_protected"
        (func $protected (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
      (import "env" "_req_param" (func $param (param i32 i32) (result i32)))
      (import "env" "_req_query" (func $query (param i32 i32) (result i32)))
      (import "env" "_req_header" (func $header (param i32 i32) (result i32)))
      (import "env" "_req_body" (func $body (result i32)))
      (import "env" "_req_method" (func $method (result i32)))
      (import "env" "_req_path" (func $path (result i32)))
      (import "env" "_auth_get_session" (func $session (result i32)))
      (import "env" "string_concat" (func $concat (param i32 i32 i32 i32) (result i32)))
      (import "env" "int_to_string" (func $text (param i64) (result i32)))
      (memory (export "memory") 2)
      #{data()}
      (global $count (mut i64) (i64.const 0))
      (table (export "handlers") 20 funcref)
      (elem (i32.const 9) $path)
      (func $add (param $a i32) (param $b i32) (result i32)
        (if (i32.eqz (local.get $a)) (then (return (local.get $b))))
        (if (i32.eqz (local.get $b)) (then (return (local.get $a))))
        (call $concat (i32.add (local.get $a) (i32.const 4)) (i32.load (local.get $a))
                      (i32.add (local.get $b) (i32.const 4)) (i32.load (local.get $b))))
      (func (export "__route_handler_0") (result i32) (call $param #{pair(:name)}))
      (func (export "handler_1") (result i32)
        (call $add (call $method) (call $add (call $body)
          (call $add (call $query #{pair(:q)}) (call $header #{pair(:x)})))))
      (func (export "__route_handler_2") (result i32) (call $path))
      (func (export "__route_handler_3") (result i32) (call $session))
      (func (export "__route_handler_4") (result i32) unreachable)
      (func (export "__route_handler_5") (result i32)
        (global.set $count (i64.add (global.get $count) (i64.const 1)))
        (call $text (global.get $count)))
      (func (export "__route_handler_6") (result i32)
        (drop (memory.grow (i32.const 16))) (i32.const 0))
      (func (export "start")
        (drop (call $listen (i32.const 0)))
        (drop (call $route #{pair(:get)} #{pair(:hello)} (i32.const 0)))
        (drop (call $route #{pair(:post)} #{pair(:echo)} (i32.const 1)))
        (drop (call $route #{pair(:get)} #{pair(:files)} (i32.const 2)))
        (drop (call $protected #{pair(:get)} #{pair(:secret)} (i32.const 3) (i32.const 0) (i32.const 0)))
        (drop (call $protected #{pair(:get)} #{pair(:admin)} (i32.const 3) #{pair(:role)}))
        (drop (call $route #{pair(:get)} #{pair(:trap)} (i32.const 4)))
        (drop (call $route #{pair(:get)} #{pair(:count)} (i32.const 5)))
        (drop (call $route #{pair(:get)} #{pair(:grow)} (i32.const 6)))
        (drop (call $route #{pair(:get)} #{pair(:missing)} (i32.const 7)))
        (drop (call $route #{pair(:get)} #{pair(:table)} (i32.const 9)))))
    """
  end

  defp start(opts \\ []) do
    server = start_supervised!({Server, [module: app()] ++ opts})
    Server.port(server)
  end

  defp get(port, path, headers \\ "") do
    ask(port, "GET #{path} HTTP/1.1\r\nhost: x\r\n#{headers}\r\n")
  end

  # The status, the type and the body of the answer to raw bytes.
  defp ask(port, bytes) do
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
    :ok = :gen_tcp.send(socket, bytes)
    answer = all(socket, "")
    :gen_tcp.close(socket)
    [head, body] = String.split(answer, "\r\n\r\n", parts: 2)
    [_all, status] = Regex.run(~r/\AHTTP\/1.1 (\d+) /, head)
    [_all, type] = Regex.run(~r/content-type: ([^;\r]+)/, head)
    {String.to_integer(status), type, body}
  end

  defp all(socket, text) do
    case :gen_tcp.recv(socket, 0) do
      {:ok, more} -> all(socket, text <> more)
      {:error, :closed} -> text
    end
  end

  test "serves the routes that the program names" do
    port = start()
    assert get(port, "/hello/Zo%C3%AB") == {200, "text/plain", "Zoë"}
    assert get(port, "/hello/%7B%7D") == {200, "application/json", "{}"}
    assert get(port, "/hello/%3Cp%3E") == {200, "text/html", "<p>"}
    assert get(port, "/files/a/b?x=1") == {200, "text/plain", "/files/a/b"}

    assert ask(port, "POST /echo?q=%20q HTTP/1.1\r\nx-TAG: t\r\ncontent-length: 4\r\n\r\nbody") ==
             {200, "text/plain", "POSTbody qt"}
  end

  test "finds a handler in the table, if no export has its number" do
    assert get(start(), "/table") == {200, "text/plain", "/table"}
  end

  test "answers HEAD without the body" do
    assert ask(start(), "HEAD /hello/x HTTP/1.1\r\n\r\n") == {200, "text/plain", ""}
  end

  test "answers what has no route, or no handler" do
    port = start()
    assert {404, _, _} = get(port, "/hello")
    assert {404, _, _} = get(port, "/hello/a/b")
    assert {404, _, _} = ask(port, "POST /hello/a HTTP/1.1\r\ncontent-length: 0\r\n\r\n")
    assert {500, _, _} = get(port, "/missing")
  end

  test "protects routes" do
    authenticate = fn request ->
      case Map.new(request.headers)["authorization"] do
        nil -> nil
        role -> %{role: role}
      end
    end

    port = start(authenticate: authenticate)
    assert {401, _, _} = get(port, "/secret")

    assert get(port, "/secret", "authorization: user\r\n") ==
             {200, "application/json", ~S|{"role":"user"}|}

    assert {403, _, _} = get(port, "/admin", "authorization: user\r\n")
    assert {200, _, _} = get(port, "/admin", "authorization: admin\r\n")
  end

  test "starts the program afresh after a trap" do
    port = start()
    assert {200, _, "1"} = get(port, "/count")
    assert {200, _, "2"} = get(port, "/count")
    assert {500, _, _} = get(port, "/trap")
    assert {200, _, "1"} = get(port, "/count")
  end

  test "starts the program afresh when its memory has grown" do
    port = start(recycle_above: 1_000_000)
    assert {200, _, "1"} = get(port, "/count")
    assert {200, _, ""} = get(port, "/grow")
    assert {200, _, "1"} = get(port, "/count")
  end

  test "serves many at a time" do
    port = start()

    answers =
      1..100
      |> Task.async_stream(fn n -> get(port, "/hello/#{n}") end, max_concurrency: 50)
      |> Enum.map(fn {:ok, answer} -> answer end)

    assert answers == for(n <- 1..100, do: {200, "text/plain", "#{n}"})
  end

  test "refuses what is no request" do
    port = start(max_body: 10)

    for {bytes, status} <- [
          {"nonsense\r\n\r\n", 400},
          {"GET /a^b HTTP/1.1\r\n\r\n", 400},
          {"OPTIONS * HTTP/1.1\r\n\r\n", 400},
          {"GET / HTTP/1.1\r\nnonsense\r\n\r\n", 400},
          {"POST /echo HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400},
          {"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400},
          {"POST /echo HTTP/1.1\r\ncontent-length: 11\r\n\r\n", 413},
          {"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 411},
          {["GET / HTTP/1.1\r\n", List.duplicate("a: b\r\n", 102), "\r\n"], 431}
        ] do
      assert {^status, _, _} = ask(port, bytes)
    end

    assert {200, _, "a"} = get(port, "/hello/a")
  end

  test "survives clients that go away" do
    port = start()

    for bytes <- ["", "GET /hello", "POST /echo HTTP/1.1\r\ncontent-length: 9\r\n\r\nx"],
        _ <- 1..20 do
      {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary])
      :gen_tcp.send(socket, bytes)
      :gen_tcp.close(socket)
    end

    assert {200, _, "a"} = get(port, "/hello/a")
  end

  test "ends a handler that takes too long" do
    source = """
    (module
      (import "env" "_http_route" (func $route (param i32 i32 i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 1)
      (data (i32.const 8) "GET/loop")
      (func (export "loop") (result i32) (loop (br 0)) unreachable)
      (func (export "start")
        (drop (call $route (i32.const 8) (i32.const 3) (i32.const 11) (i32.const 5)
                           (i32.const 12) (i32.const 4)))))
    """

    server = start_supervised!({Server, module: source, port: 0, timeout: 50})
    assert {500, _, _} = get(Server.port(server), "/loop")
  end

  test "does not start a program that does not compile, link or start" do
    assert {:error, %Beamr.CompileError{}} = Server.start_link(module: "(module oh)")

    assert {:error, %Beamr.LinkError{imports: [%{host: Beamr.Host.Clean.Files}]}} =
             Server.start_link(
               module:
                 ~S|(module (import "env" "file_exists" (func (param i32 i32) (result i32))))|
             )

    assert {:error, %Beamr.CallError{reason: :unknown_function}} =
             Server.start_link(module: "(module)")

    assert {:error, %Beamr.Trap{}} =
             Server.start_link(module: ~S|(module (func (export "start") unreachable))|)

    assert_raise ArgumentError, fn -> Server.start_link([]) end
    assert_raise ArgumentError, fn -> Server.start_link(module: "(module)", prot: 1) end
  end

  test "a port in use is an error" do
    port = start()
    assert Server.start_link(module: app(), port: port) == {:error, :eaddrinuse}
  end

  test "is compiled once for all restarts" do
    assert %{id: :app, start: {Server, :start_link, [opts]}} =
             Server.child_spec(module: app(), port: 0, id: :app)

    assert %Beamr.Module{} = opts[:module]
    refute Keyword.has_key?(opts, :id)
  end

  describe "the imports" do
    defp told(name, args, result, answer \\ :ok) do
      test = self()
      tell = fn what -> with _ <- send(test, what), do: answer end
      clean(name, args, result, hosts: [{HTTPServer, tell}])
    end

    test "_http_listen tells the port" do
      assert told("_http_listen", [i32: 8080], nil) == nil
      assert_received {:listen, 8080}
      assert told("_http_listen", [i32: 8080], :i32) == 0
      assert told("_http_listen", [i32: 8080], :i32, :error) == -1
    end

    test "_http_route tells a route, by index and by name" do
      for result <- [nil, :i32],
          {handler, told} <- [{{:i32, 3}, 3}, {"home", "home"}],
          result || told == 3 do
        assert told("_http_route", ["get", "/", handler], result) in [nil, 0]

        assert_received {:route,
                         %{method: "GET", path: "/", handler: ^told, protected: false, role: nil}}
      end
    end

    test "_http_route_protected tells the role, if there is one" do
      for {role, told} <- [{"admin", "admin"}, {"", nil}], handler <- [{:i32, 3}, "home"] do
        assert told("_http_route_protected", ["POST", "/x", handler, role], :i32) == 0
        assert_received {:route, %{method: "POST", protected: true, role: ^told}}
      end

      assert told("_http_route_protected", ["POST", "/x", {:i32, 3}, "a"], nil) == nil
    end

    test "need a function" do
      assert_raise ArgumentError, ~r/needs a function/, fn ->
        Beamr.instantiate("(module)", hosts: [HTTPServer])
      end
    end
  end
end
