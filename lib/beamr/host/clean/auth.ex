defmodule Beamr.Host.Clean.Auth do
  @moduledoc """
  Clean's `auth`: who made the request that the guest answers.

      hosts: [{Beamr.Host.Clean.Auth, %{userId: 7, role: "editor", permissions: ["publish"]}}]

  The argument is the session, a map; nil for none; or a function without arguments that answers
  one of the two, called whenever the guest asks. `_auth_get_session` is all of it as JSON, or ""
  for none; the others look at its `role` and its list of `permissions`, under these names as
  atoms or strings. `_auth_has_any_role` takes a JSON array of roles, or names with commas between.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  alias Beamr.Host.Clean.JSON

  @impl true
  def init(session) when is_nil(session) or is_map(session) or is_function(session, 0),
    do: session

  def init(arg) do
    raise ArgumentError,
          "#{inspect(__MODULE__)} needs a map, nil or a function, given: #{inspect(arg)}"
  end

  @wasm "_auth_get_session () -> string"
  def get_session(_wasm, session) do
    case session(session) do
      nil -> ""
      session -> JSON.encode(session)
    end
  end

  @wasm "_auth_require_auth () -> boolean"
  def require_auth(_wasm, session), do: session(session) != nil

  @wasm "_auth_require_role (string) -> boolean"
  def require_role(_wasm, session, role), do: role(session(session)) == role

  @wasm "_auth_can (string) -> boolean"
  def can(_wasm, session, permission) do
    permissions = session |> session() |> field(:permissions)
    is_list(permissions) and permission in Enum.map(permissions, &to_string/1)
  end

  @wasm "_auth_has_any_role (string) -> boolean"
  def has_any_role(_wasm, session, roles) do
    roles =
      case JSON.decode(roles) do
        {:ok, roles} when is_list(roles) -> roles
        _other -> roles |> String.split(",") |> Enum.map(&String.trim/1)
      end

    role = role(session(session))
    role != nil and role in roles
  end

  defp session(session) when is_function(session), do: session.()
  defp session(session), do: session

  @doc false
  @spec role(map() | nil) :: String.t() | nil
  def role(session) do
    role = field(session, :role)
    role && to_string(role)
  end

  defp field(nil, _name), do: nil
  defp field(session, name), do: Map.get(session, name) || Map.get(session, Atom.to_string(name))
end
