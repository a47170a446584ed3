defmodule Beamr.Host.Clean.Server do
  @moduledoc """
  Serves HTTP requests with the handlers that a Clean program names with `_http_route`: an example
  of a server around a guest, small enough to read.

      children = [{Beamr.Host.Clean.Server, module: "app.wasm", port: 8080, name: App}]

  The program's entry point is called once, and says what it handles; then each request calls a
  handler, one at a time, in this process. `:name` in a route's path is a parameter, and `*` at its
  end stands for any rest. A handler answers a string: the body, whose type is JSON, HTML or plain
  text by how it begins. A handler given by its index is the export `__route_handler_N` or
  `handler_N`, or the element of the exported table.

  A request without a route is 404. Protected routes need a session (401), which `authenticate:`
  makes of the request, and its role (403). A handler that fails is 500, and when it trapped the
  program is started afresh. So it is when its memory has grown beyond `recycle_above:`, because
  Clean programs free nothing.

  Connections are closed after one request. Behind a proxy that speaks TLS this is enough for a
  service; anything more is a matter for a web server's library and `Beamr.call/4`.
  """

  use GenServer

  alias Beamr.{Instance, Trap}
  alias Beamr.Host.Clean

  @acceptors 16
  @read_timeout 10_000
  @max_body 1_048_576
  @max_headers 100
  @recycle_above 67_108_864
  @harmless [:console, :math, :strings, :memory_runtime, :crypto]

  @typedoc "A request, as `authenticate:` gets it and `Beamr.Host.Clean.Request` has it."
  @type request :: %{
          method: String.t(),
          path: String.t(),
          query: [{String.t(), String.t()}],
          headers: [{String.t(), String.t()}],
          body: binary()
        }

  @doc """
  Starts the server. Options:

    * `:module` - a `Beamr.Module`, WebAssembly bytes or text, or the path of a file (required);
    * `:port` - which port to listen on, 0 for any; what the program said to `_http_listen` unless
      given;
    * `:ip` - the address to listen on; `{127, 0, 0, 1}` unless given;
    * `:grant` - the other groups that the program may use; those that do nothing to anybody unless
      given. `:allocator` - as for `Beamr.Host.Clean.run/2`;
    * `:authenticate` - a function of the request that answers its session, a map, or nil;
    * `:timeout` - milliseconds that a handler may take; 5,000 unless given;
    * `:recycle_above` - bytes of memory; 64 MiB unless given;
    * `:max_body` - bytes that a request's body may have; 1 MiB unless given;
    * `:instance` - further options for `Beamr.instantiate/2`;
    * `:name` - as for `GenServer.start_link/3`.

  A program that does not compile, link or start makes it `{:error, exception}`.
  """
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) when is_list(opts) do
    opts =
      Keyword.validate!(opts, [
        :module,
        :name,
        port: nil,
        allocator: nil,
        ip: {127, 0, 0, 1},
        grant: @harmless,
        authenticate: nil,
        timeout: 5_000,
        recycle_above: @recycle_above,
        max_body: @max_body,
        instance: []
      ])

    unless opts[:module], do: raise(ArgumentError, ":module is required")

    with {:ok, module} <- Beamr.Server.load(opts[:module], []) do
      options = opts |> Map.new() |> Map.put(:module, module)
      GenServer.start_link(__MODULE__, options, Keyword.take(opts, [:name]))
    end
  end

  @doc """
  A child specification for a supervisor. Besides the options of `start_link/1`, `:id`, `:restart`
  and `:shutdown` override the defaults. `module:` is compiled here, once.
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts) do
    %{
      id: Keyword.get(opts, :id, __MODULE__),
      start: {__MODULE__, :start_link, [Beamr.Server.compiled(opts)]},
      restart: Keyword.get(opts, :restart, :permanent),
      shutdown: Keyword.get(opts, :shutdown, 5_000)
    }
  end

  @doc "The port that the server listens on."
  @spec port(GenServer.server()) :: :inet.port_number()
  def port(server), do: GenServer.call(server, :port)

  ## The guest

  @told {__MODULE__, :told}
  @request {__MODULE__, :request}

  @impl true
  def init(options) do
    Process.flag(:trap_exit, true)

    with {:ok, state} <- start(%{options: options, wasm: nil, routes: [], said: nil}),
         {:ok, listener} <- listen(options, state.said) do
      {:ok, port} = :inet.port(listener)
      server = self()
      limits = Map.take(options, [:max_body, :timeout])
      for _ <- 1..@acceptors, do: spawn_link(fn -> accept(listener, server, limits) end)
      {:ok, Map.merge(state, %{listener: listener, port: port})}
    else
      {:error, reason} ->
        Process.flag(:trap_exit, false)

        with [parent | _] when is_pid(parent) <- Process.get(:"$ancestors"),
             do: Process.unlink(parent)

        {:stop, reason}
    end
  end

  defp listen(options, said) do
    :gen_tcp.listen(options.port || said || 0, [
      :binary,
      ip: options.ip,
      active: false,
      packet: :http_bin,
      reuseaddr: true,
      backlog: 1_024
    ])
  end

  # Makes the program's instance and has it say what it handles.
  defp start(%{options: options} = state) do
    Process.put(@told, [])

    hosts = [
      {Clean.HTTPServer, &tell/1},
      {Clean.Request, fn -> Process.get(@request) end},
      {Clean.Auth, fn -> Process.get(@request)[:session] end}
    ]

    chosen = if options.allocator, do: [allocator: options.allocator], else: []
    own = [grant: options.grant, hosts: hosts, timeout: options.timeout] ++ chosen

    with {:ok, wasm} <- Clean.instantiate(options.module, Keyword.merge(options.instance, own)),
         {:ok, _results} <- Clean.call_entry(wasm, options.module, options.timeout) do
      told = Enum.reverse(Process.delete(@told))
      routes = for {:route, route} <- told, do: Map.put(route, :parts, parts(route.path))
      {:ok, %{state | wasm: wasm, routes: routes, said: told[:listen]}}
    end
  end

  defp tell(what) do
    case Process.get(@told) do
      nil -> :too_late
      told -> with _ <- Process.put(@told, [what | told]), do: :ok
    end
  end

  @impl true
  def handle_call(:port, _from, state), do: {:reply, state.port, state}

  def handle_call({:request, request}, _from, state) do
    {answer, result} = answer(request, state)

    case result do
      {:error, %Trap{}} -> afresh(answer, state)
      _ -> if large?(state), do: afresh(answer, state), else: {:reply, answer, state}
    end
  end

  @impl true
  def handle_info({:EXIT, _acceptor, reason}, state), do: {:stop, reason, state}
  def handle_info(_other, state), do: {:noreply, state}

  @impl true
  def terminate(_reason, state), do: Beamr.close(state.wasm)

  defp large?(%{wasm: wasm, options: options}) do
    case Beamr.IO.size(wasm) do
      {:ok, size} -> size > options.recycle_above
      {:error, _closed} -> true
    end
  end

  defp afresh(answer, state) do
    Beamr.close(state.wasm)

    case start(state) do
      {:ok, state} -> {:reply, answer, state}
      {:error, reason} -> {:stop, reason, answer, state}
    end
  end

  # The status and body of a request's answer, and how its handler ended.
  defp answer(request, %{routes: routes, options: options} = state) do
    # Who asks for the head only is answered by the handler of the whole.
    method = if request.method == "HEAD", do: "GET", else: request.method

    case Enum.find_value(routes, &match(&1, method, request.parts)) do
      nil ->
        {{404, "not found"}, :ok}

      {route, params} ->
        session = options.authenticate && options.authenticate.(Map.delete(request, :parts))
        request = Map.merge(request, %{params: params, session: session})

        cond do
          route.protected and session == nil -> {{401, "unauthorized"}, :ok}
          route.role not in [nil, Clean.Auth.role(session)] -> {{403, "forbidden"}, :ok}
          true -> handle(route, request, state)
        end
    end
  end

  defp match(route, method, parts) do
    with true <- route.method == method, {:ok, params} <- params(route.parts, parts, []) do
      {route, params}
    else
      _ -> nil
    end
  end

  defp params([], [], params), do: {:ok, params}
  defp params(["*"], _rest, params), do: {:ok, params}

  defp params([":" <> name | route], [part | parts], params),
    do: params(route, parts, [{name, part} | params])

  defp params([part | route], [part | parts], params), do: params(route, parts, params)
  defp params(_route, _parts, _params), do: nil

  defp handle(route, request, %{wasm: wasm, options: options}) do
    Process.put(@request, request)

    with {:ok, handler} <- handler(wasm, route.handler),
         {:ok, results} <-
           Beamr.call(wasm, handler, [], timeout: options.timeout, unsigned: true),
         {:ok, body} <- body(wasm, results) do
      {{200, body}, :ok}
    else
      error -> {{500, "the handler failed"}, error}
    end
  after
    Process.delete(@request)
  end

  defp body(wasm, [pointer]) when is_integer(pointer), do: Clean.read_string(wasm, pointer)
  defp body(_wasm, _results), do: {:ok, ""}

  defp handler(_wasm, name) when is_binary(name), do: {:ok, name}

  defp handler(wasm, index) do
    exports = Beamr.Module.exports(wasm.module)
    named = ["__route_handler_#{index}", "handler_#{index}"]

    case {for({name, {:function, _}} <- exports, name in named, do: name),
          for({name, {:table, %{element: :funcref}}} <- exports, do: name)} do
      {[name | _], _tables} -> {:ok, name}
      {[], [table | _]} when index >= 0 -> element(wasm, table, index)
      _ -> {:error, :unknown_handler}
    end
  end

  defp element(wasm, table, index) do
    with {:ok, nil} <- Instance.table_get(wasm, table, index), do: {:error, :unknown_handler}
  end

  ## Connections: each acceptor serves one after the other

  defp accept(listener, server, limits) do
    case :gen_tcp.accept(listener) do
      {:ok, socket} ->
        serve(socket, server, limits)
        :gen_tcp.close(socket)
        accept(listener, server, limits)

      {:error, reason} when reason in [:emfile, :enfile, :econnaborted, :timeout] ->
        # Out of descriptors: those in use come back.
        Process.sleep(10)
        accept(listener, server, limits)

      {:error, _closed} ->
        :ok
    end
  end

  defp serve(socket, server, limits) do
    deadline = now() + @read_timeout

    case read(socket, limits, deadline) do
      {:ok, request} ->
        {status, body} = ask(server, request, limits)
        respond(socket, status, body, request.method == "HEAD")

      {:error, status} when is_integer(status) ->
        respond(socket, status, "", false)

      {:error, _closed} ->
        :ok
    end
  end

  defp ask(server, request, limits) do
    GenServer.call(server, {:request, request}, limits.timeout + 30_000)
  catch
    :exit, {:timeout, _call} -> {503, "busy"}
    :exit, _stopped -> {503, "starting"}
  end

  defp read(socket, limits, deadline) do
    with {:ok, {:http_request, method, target, _version}} <- recv(socket, 0, deadline),
         {:ok, headers} <- headers(socket, [], deadline),
         {:ok, request} <- request(to_string(method), target, headers),
         {:ok, body} <- read_body(socket, Map.new(headers), limits, deadline) do
      {:ok, Map.put(request, :body, body)}
    else
      {:ok, _no_request} -> {:error, 400}
      {:error, :timeout} -> {:error, 408}
      {:error, reason} -> {:error, reason}
    end
  end

  defp headers(_socket, headers, _deadline) when length(headers) > @max_headers, do: {:error, 431}

  defp headers(socket, headers, deadline) do
    case recv(socket, 0, deadline) do
      {:ok, :http_eoh} ->
        {:ok, Enum.reverse(headers)}

      {:ok, {:http_header, _, name, _, value}} ->
        name = name |> to_string() |> String.downcase()
        headers(socket, [{name, value} | headers], deadline)

      {:ok, _no_header} ->
        {:error, 400}

      {:error, reason} ->
        {:error, reason}
    end
  end

  defp request(method, target, headers) do
    target = with {:absoluteURI, _scheme, _host, _port, path} <- target, do: {:abs_path, path}

    with {:abs_path, path} <- target,
         {:ok, uri} <- URI.new(path) do
      {:ok,
       %{
         method: method,
         path: uri.path || "/",
         parts: parts(uri.path || "/"),
         query: uri.query |> Kernel.||("") |> URI.query_decoder() |> Enum.to_list(),
         headers: headers
       }}
    else
      _ -> {:error, 400}
    end
  end

  defp parts(path) do
    for part <- String.split(path, "/"), part != "", do: URI.decode(part)
  end

  defp read_body(socket, headers, limits, deadline) do
    case {headers["transfer-encoding"], Integer.parse(headers["content-length"] || "0")} do
      {nil, {0, ""}} ->
        {:ok, ""}

      {nil, {length, ""}} when length > 0 and length <= limits.max_body ->
        if String.downcase(headers["expect"] || "") == "100-continue",
          do: :gen_tcp.send(socket, "HTTP/1.1 100 Continue\r\n\r\n")

        with :ok <- :inet.setopts(socket, packet: :raw), do: recv(socket, length, deadline)

      {nil, {length, ""}} when length > 0 ->
        {:error, 413}

      {nil, _no_length} ->
        {:error, 400}

      {_chunked, _length} ->
        {:error, 411}
    end
  end

  defp recv(socket, length, deadline) do
    :gen_tcp.recv(socket, length, max(deadline - now(), 0))
  end

  defp now, do: System.monotonic_time(:millisecond)

  @reasons %{
    200 => "OK",
    400 => "Bad Request",
    401 => "Unauthorized",
    403 => "Forbidden",
    404 => "Not Found",
    408 => "Request Timeout",
    411 => "Length Required",
    413 => "Payload Too Large",
    431 => "Request Header Fields Too Large",
    500 => "Internal Server Error",
    503 => "Service Unavailable"
  }

  defp respond(socket, status, body, head_only) do
    :inet.setopts(socket, send_timeout: @read_timeout)

    :gen_tcp.send(socket, [
      "HTTP/1.1 #{status} #{@reasons[status]}\r\ncontent-type: #{type(body)}\r\n",
      "content-length: #{byte_size(body)}\r\nconnection: close\r\n\r\n",
      if(head_only, do: "", else: body)
    ])
  end

  defp type(<<first, _::binary>>) when first in [?{, ?[], do: "application/json"
  defp type("<" <> _), do: "text/html; charset=utf-8"
  defp type(_text), do: "text/plain; charset=utf-8"
end
