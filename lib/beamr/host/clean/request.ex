defmodule Beamr.Host.Clean.Request do
  @moduledoc """
  Clean's `request`: what a handler asks about the request that it answers.

      hosts: [{Beamr.Host.Clean.Request, %{method: "POST", path: "/users", body: "{}"}}]

  The argument is a map with any of `:method`, `:path`, `:body`, and `:params`, `:query` and
  `:headers`, which are maps or lists of pairs; or a function without arguments that answers such a
  map, called whenever the guest asks. What is not there is "GET", "/" and "". Names of headers are
  case-insensitive.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  @impl true
  def init(nil), do: %{}
  def init(request) when is_map(request) or is_function(request, 0), do: request

  def init(arg) do
    raise ArgumentError,
          "#{inspect(__MODULE__)} needs a map or a function, given: #{inspect(arg)}"
  end

  @wasm "_req_param (string) -> string"
  def param(_wasm, request, name), do: value(request, :params, &(&1 == name))

  @wasm "_req_query (string) -> string"
  def query(_wasm, request, name), do: value(request, :query, &(&1 == name))

  @wasm "_req_header (string) -> string"
  def header(_wasm, request, name) do
    name = String.downcase(name)
    value(request, :headers, &(String.downcase(&1) == name))
  end

  @wasm "_req_body () -> string"
  def body(_wasm, request), do: get(request, :body, "")

  @wasm "_req_method () -> string"
  def method(_wasm, request), do: get(request, :method, "GET")

  @wasm "_req_path () -> string"
  def path(_wasm, request), do: get(request, :path, "/")

  defp get(request, key, default) when is_function(request), do: get(request.(), key, default)
  defp get(request, key, default), do: Map.get(request || %{}, key) || default

  defp value(request, key, wanted) do
    Enum.find_value(get(request, key, []), "", fn {name, value} ->
      if wanted.(to_string(name)), do: to_string(value)
    end)
  end
end
