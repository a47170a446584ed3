defmodule Beamr.Host.Clean.HTTP do
  @moduledoc """
  Clean's `http_client`, to the hosts that are allowed and no others.

      hosts: [{Beamr.Host.Clean.HTTP, allow: ["api.example.com", "localhost:8080", "*.example.org"]}]

  Options:

    * `:allow` - hosts, with a port where only that one is meant; `*.` stands for any name before
      it. Or a function that takes a `URI` and answers whether it is allowed. Nothing is allowed
      unless given.
    * `:timeout` - milliseconds that a request may take with its redirects; 30,000 unless given,
      and never more than the guest asks for with `http_set_timeout`, or than its call has left;
    * `:max_redirects` - 5 unless given; the guest may set fewer;
    * `:max_bytes` - what the body of a response may have (16 MiB unless given). It is refused as
      soon as it has more, or at its end if its status is not 200;
    * `:user_agent` - `"Beamr"` unless given, for as long as the guest sets none;
    * `:ssl` - options for https in the place of the default, which verifies the server by the
      operating system's certificates.

  Only http and https are spoken. Each redirect is checked as if it were a request; on the way to
  another host it loses `Authorization` and `Cookie`. What is allowed is the name: what address it
  has is the resolver's to say.

  The result is the body of the response, whatever its status; "" where there is none, where the
  request failed or was not allowed. Headers are a JSON object, or lines of `Name: value`.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  alias Beamr.Host.Clean.{JSON, Text}

  @timeout 30_000
  @max_redirects 5
  @max_bytes 16_777_216

  # What the guest sets lives as long as the instance, and is shared by the processes that call
  # it: an array of atomics, with room for a name of so many bytes.
  @timeout_word 1
  @redirects_word 2
  @agent_length 3
  @agent_bytes 256

  # What is the client's own to say.
  @reserved ~w(host content-length transfer-encoding connection te upgrade expect)

  @impl true
  def init(arg) do
    opts = Keyword.drop(if(is_list(arg), do: arg, else: []), [:allocator])

    opts =
      Keyword.validate!(opts,
        allow: [],
        timeout: @timeout,
        max_redirects: @max_redirects,
        max_bytes: @max_bytes,
        user_agent: "Beamr",
        ssl: nil
      )

    {:ok, _started} = Application.ensure_all_started(:inets)
    {:ok, _started} = Application.ensure_all_started(:ssl)
    set = :atomics.new(@agent_length + div(@agent_bytes, 8), signed: false)
    :atomics.put(set, @timeout_word, opts[:timeout])
    :atomics.put(set, @redirects_word, opts[:max_redirects])
    opts |> Map.new() |> Map.put(:set, set)
  end

  @wasm "http_get (string) -> string"
  def get(_wasm, http, url), do: request(http, :get, url)

  @wasm "http_delete (string) -> string"
  def delete(_wasm, http, url), do: request(http, :delete, url)

  @wasm "http_head (string) -> string"
  def head(_wasm, http, url), do: request(http, :head, url)

  @wasm "http_options (string) -> string"
  def options(_wasm, http, url), do: request(http, :options, url)

  @wasm "http_get_with_headers (string, string) -> string"
  def get_with_headers(_wasm, http, url, headers), do: request(http, :get, url, nil, headers)

  @text "text/plain; charset=utf-8"
  @json "application/json"
  @form "application/x-www-form-urlencoded"

  @wasm "http_post (string, string) -> string"
  def post(_wasm, http, url, body), do: request(http, :post, url, {@text, body})

  @wasm "http_put (string, string) -> string"
  def put(_wasm, http, url, body), do: request(http, :put, url, {@text, body})

  @wasm "http_patch (string, string) -> string"
  def patch(_wasm, http, url, body), do: request(http, :patch, url, {@text, body})

  @wasm "http_post_json (string, string) -> string"
  def post_json(_wasm, http, url, body), do: request(http, :post, url, {@json, body})

  @wasm "http_put_json (string, string) -> string"
  def put_json(_wasm, http, url, body), do: request(http, :put, url, {@json, body})

  @wasm "http_patch_json (string, string) -> string"
  def patch_json(_wasm, http, url, body), do: request(http, :patch, url, {@json, body})

  @wasm "http_post_form (string, string) -> string"
  def post_form(_wasm, http, url, body), do: request(http, :post, url, {@form, body})

  @wasm "http_post_with_headers (string, string, string) -> string"
  def post_with_headers(_wasm, http, url, body, headers) do
    request(http, :post, url, {@text, body}, headers)
  end

  @wasm "http_set_user_agent (string)"
  def set_user_agent(_wasm, %{set: set}, agent) do
    bytes = binary_part(agent, 0, min(byte_size(agent), @agent_bytes))
    padded = bytes <> :binary.copy(<<0>>, @agent_bytes - byte_size(bytes))

    for {word, n} <- Enum.with_index(for(<<word::64 <- padded>>, do: word), 1),
        do: :atomics.put(set, @agent_length + n, word)

    :atomics.put(set, @agent_length, byte_size(bytes))
  end

  @wasm "http_set_timeout (i32)"
  def set_timeout(_wasm, http, milliseconds) do
    :atomics.put(http.set, @timeout_word, milliseconds |> max(1) |> min(http.timeout))
  end

  @wasm "http_set_max_redirects (i32)"
  def set_max_redirects(_wasm, http, count) do
    :atomics.put(http.set, @redirects_word, count |> max(0) |> min(http.max_redirects))
  end

  defp user_agent(%{set: set} = http) do
    case :atomics.get(set, @agent_length) do
      0 ->
        http.user_agent

      length ->
        words = for n <- 1..div(@agent_bytes, 8), do: <<:atomics.get(set, @agent_length + n)::64>>
        words |> IO.iodata_to_binary() |> binary_part(0, length)
    end
  end

  ## Requests

  defp request(http, method, url, content \\ nil, headers \\ "") do
    deadline = now() + Beamr.Instance.within_outer(:atomics.get(http.set, @timeout_word))

    with {:ok, uri} <- parse(url),
         {:ok, headers} <- headers(headers),
         {:ok, body} <-
           send_to(uri, method, content, headers, http, deadline, redirects(http)) do
      body
    else
      _ -> :error
    end
  end

  defp redirects(http), do: :atomics.get(http.set, @redirects_word)
  defp now, do: System.monotonic_time(:millisecond)

  defp send_to(uri, method, content, headers, http, deadline, redirects) do
    with true <- allowed?(uri, http.allow),
         left when left > 0 <- deadline - now(),
         message = message(uri, content, headers, http),
         {:ok, status, answered, body} <- exchange(method, message, uri, http, left) do
      case location(status, answered, uri) do
        {:ok, next} when redirects > 0 ->
          {method, content} = redirected(status, method, content)
          headers = if same?(uri, next), do: headers, else: Enum.reject(headers, &secret?/1)
          send_to(next, method, content, headers, http, deadline, redirects - 1)

        {:ok, _next} ->
          :error

        :none ->
          {:ok, Text.valid(body)}
      end
    else
      _ -> :error
    end
  end

  # The body comes piece by piece, so that one without end is not waited for.
  defp exchange(method, message, uri, http, left) do
    options = [sync: false, stream: {:self, :once}, body_format: :binary]

    with {:ok, id} <- :httpc.request(method, message, client_options(uri, http, left), options) do
      case collect(id, nil, [], 0, http.max_bytes, now() + left) do
        {:ok, _status, _headers, _body} = answer ->
          answer

        :error ->
          :httpc.cancel_request(id)
          forget(id)
      end
    end
  end

  defp collect(id, client, body, size, most, deadline) do
    receive do
      {:http, {^id, :stream_start, _headers, client}} ->
        :httpc.stream_next(client)
        collect(id, client, body, size, most, deadline)

      {:http, {^id, :stream, bytes}} when size + byte_size(bytes) <= most ->
        :httpc.stream_next(client)
        collect(id, client, [body, bytes], size + byte_size(bytes), most, deadline)

      {:http, {^id, :stream_end, headers}} ->
        {:ok, 200, headers, IO.iodata_to_binary(body)}

      # Other answers than 200 come whole.
      {:http, {^id, {{_version, status, _reason}, headers, bytes}}} when byte_size(bytes) <= most ->
        {:ok, status, headers, bytes}

      {:http, {^id, _too_large_or_error}} ->
        :error

      {:http, {^id, :stream, _too_large}} ->
        :error
    after
      max(deadline - now(), 0) -> :error
    end
  end

  defp forget(id) do
    receive do
      {:http, message} when elem(message, 0) == id -> forget(id)
    after
      0 -> :error
    end
  end

  defp message(uri, content, headers, http) do
    url = String.to_charlist(URI.to_string(uri))
    {types, headers} = Enum.split_with(headers, fn {name, _} -> name == ~c"content-type" end)
    headers = put_new(headers, ~c"user-agent", user_agent(http))

    case content do
      nil -> {url, headers}
      {type, body} -> {url, headers, content_type(types, type), body}
    end
  end

  defp content_type([{_name, given} | _], _type), do: given
  defp content_type([], type), do: String.to_charlist(type)

  defp put_new(headers, name, value) do
    if value == "" or List.keymember?(headers, name, 0) or value =~ ~r/[\x00-\x1F\x7F]/,
      do: headers,
      else: [{name, String.to_charlist(value)} | headers]
  end

  defp client_options(uri, http, left) do
    common = [timeout: left, connect_timeout: left, autoredirect: false]

    # For HTTP too: without the option, httpc of OTP 26 and later looks for the certificates of the
    # system, and raises where there are none.
    [{:ssl, if(uri.scheme == "https", do: http.ssl || verified(), else: [])} | common]
  end

  defp verified do
    [
      verify: :verify_peer,
      cacerts: :public_key.cacerts_get(),
      customize_hostname_check: [
        match_fun: :public_key.pkix_verify_hostname_match_fun(:https)
      ]
    ]
  end

  ## Addresses

  # Made afresh out of its parts, so that what is checked is what is asked.
  defp parse(url) do
    with {:ok, %URI{userinfo: nil, host: host, scheme: scheme} = uri} when host not in [nil, ""] <-
           URI.new(url),
         scheme when scheme in ["http", "https"] <- String.downcase(scheme || ""),
         host = host |> String.downcase() |> String.trim_trailing("."),
         true <- host =~ ~r/\A[a-z0-9_.:-]+\z/ do
      path = if uri.path in [nil, ""], do: "/", else: uri.path
      port = uri.port || if(scheme == "https", do: 443, else: 80)
      {:ok, %URI{scheme: scheme, host: host, port: port, path: path, query: uri.query}}
    else
      _ -> :error
    end
  end

  defp allowed?(uri, allow) when is_function(allow, 1), do: allow.(uri) == true
  defp allowed?(uri, allow), do: Enum.any?(allow, &allows?(String.downcase(&1), uri))

  defp allows?("*." <> rest, uri) do
    {host, port} = host_and_port(rest)
    String.ends_with?(uri.host, "." <> host) and port in [nil, uri.port]
  end

  defp allows?(entry, uri) do
    {host, port} = host_and_port(entry)
    host == uri.host and port in [nil, uri.port]
  end

  # Addresses of version 6 are in brackets where a port follows.
  defp host_and_port(entry) do
    case Regex.run(~r/\A(?|\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::([0-9]+))?\z/, entry) do
      [_all, host, port] -> {host, String.to_integer(port)}
      [_all, host] -> {host, nil}
      nil -> {entry, nil}
    end
  end

  ## Redirects

  defp location(status, headers, uri) when status in [301, 302, 303, 307, 308] do
    with {_name, to} <- List.keyfind(headers, ~c"location", 0),
         {:ok, next} <- parse(merge(uri, List.to_string(to))) do
      {:ok, next}
    else
      nil -> :none
      # Somewhere that no request may go.
      :error -> {:ok, %URI{scheme: "http", host: "", port: 0, path: "/"}}
    end
  end

  defp location(_status, _headers, _uri), do: :none

  defp merge(uri, to) do
    uri |> URI.merge(to) |> URI.to_string()
  rescue
    _invalid -> ""
  end

  defp redirected(303, :head, _content), do: {:head, nil}
  defp redirected(303, _method, _content), do: {:get, nil}
  defp redirected(status, :post, _content) when status in [301, 302], do: {:get, nil}
  defp redirected(_status, method, content), do: {method, content}

  defp same?(a, b), do: {a.scheme, a.host, a.port} == {b.scheme, b.host, b.port}
  defp secret?({name, _value}), do: name in [~c"authorization", ~c"cookie"]

  ## Headers

  defp headers(""), do: {:ok, []}

  defp headers(text) do
    pairs =
      case JSON.decode(text) do
        {:ok, map} when is_map(map) -> Map.to_list(map)
        _lines -> for line <- String.split(text, ["\r\n", "\n"], trim: true), do: pair(line)
      end

    if Enum.all?(pairs, &header?/1) do
      {:ok,
       for(
         {name, value} <- pairs,
         name = String.downcase(name),
         name not in @reserved,
         do: {String.to_charlist(name), value |> to_string() |> :binary.bin_to_list()}
       )}
    else
      :error
    end
  end

  defp pair(line) do
    case String.split(line, ":", parts: 2) do
      [name, value] -> {String.trim(name), String.trim(value)}
      [_no_header] -> :error
    end
  end

  defp header?({name, value}) when is_binary(value) or is_number(value) do
    name =~ ~r/\A[!#$%&'*+.^_`|~0-9A-Za-z-]+\z/ and not (to_string(value) =~ ~r/[\x00-\x1F\x7F]/)
  end

  defp header?(_other), do: false
end
