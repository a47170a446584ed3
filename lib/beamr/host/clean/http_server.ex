defmodule Beamr.Host.Clean.HTTPServer do
  @moduledoc """
  Clean's `http_server`: a program that says which requests it handles.

  The argument is a function that is told: `{:listen, port}`, and for each route `{:route, map}`
  with `:method`, `:path`, `:handler` (an index or the name of an export), `:protected` and `:role`
  (nil for any). It answers `:ok`, or else the guest gets -1. `Beamr.Host.Clean.Server` serves what
  it is told.

      tell = fn what ->
        send(pid, what)
        :ok
      end

      hosts: [{Beamr.Host.Clean.HTTPServer, tell}]
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  @impl true
  def init(tell) when is_function(tell, 1), do: tell

  def init(arg) do
    raise ArgumentError, "#{inspect(__MODULE__)} needs a function, given: #{inspect(arg)}"
  end

  @wasm "_http_listen (i32) -> status"
  def listen(_wasm, tell, port), do: tell(tell, {:listen, port})

  @wasm "_http_route (string, string, handler) -> status"
  def route(_wasm, tell, method, path, handler) do
    tell(tell, {:route, described(method, path, handler, false, nil)})
  end

  @wasm "_http_route_protected (string, string, handler, string) -> status"
  def route_protected(_wasm, tell, method, path, handler, role) do
    role = if role != "", do: role
    tell(tell, {:route, described(method, path, handler, true, role)})
  end

  defp described(method, path, handler, protected, role) do
    %{
      method: String.upcase(method),
      path: path,
      handler: handler,
      protected: protected,
      role: role
    }
  end

  defp tell(tell, what), do: if(tell.(what) == :ok, do: :ok, else: :error)
end
