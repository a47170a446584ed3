defmodule Beamr.Host.Clean.Database do
  @moduledoc """
  Clean's `database`, over any database that has an adapter: a module with the callbacks below.

      hosts: [{Beamr.Host.Clean.Database, {MyAdapter, connection}}]

  Parameters come as a JSON array ("" for none), and rows go as a JSON array of objects. A failed
  query is "", a failed execution -1, and a failed begin, commit or rollback 0. What an adapter
  raises ends the guest's call with a `Beamr.ImportError`.
  """

  use Beamr.Host, module: "env", types: Beamr.Host.Clean.Types

  alias Beamr.Host.Clean.JSON

  @typedoc "What the adapter makes of it: a pid, a name, a handle."
  @type connection :: term()

  @typedoc "A row: a map, or a list of pairs where the order of the columns is to be kept."
  @type row :: map() | [{String.t() | atom(), term()}]

  @typedoc "A parameter: a term of JSON."
  @type parameter :: nil | boolean() | number() | String.t() | [parameter()] | map()

  @doc "The rows of a query."
  @callback query(connection(), sql :: String.t(), [parameter()]) ::
              {:ok, [row()]} | {:error, term()}
  @doc "Executes a statement; answers how many rows it affected."
  @callback execute(connection(), sql :: String.t(), [parameter()]) ::
              {:ok, non_neg_integer()} | {:error, term()}
  @doc "Begins a transaction."
  @callback begin(connection()) :: :ok | {:error, term()}
  @doc "Commits the transaction."
  @callback commit(connection()) :: :ok | {:error, term()}
  @doc "Rolls the transaction back."
  @callback rollback(connection()) :: :ok | {:error, term()}

  @impl true
  def init({adapter, _connection} = arg) when is_atom(adapter) and adapter != nil, do: arg

  def init(arg) do
    raise ArgumentError,
          "#{inspect(__MODULE__)} needs {adapter, connection}, given: #{inspect(arg)}"
  end

  @wasm "_db_query (string, string) -> string"
  def db_query(_wasm, {adapter, connection}, sql, params) do
    with {:ok, params} <- params(params), {:ok, rows} <- adapter.query(connection, sql, params) do
      JSON.encode(rows)
    else
      _error -> :error
    end
  end

  @wasm "_db_execute (string, string) -> count"
  def db_execute(_wasm, {adapter, connection}, sql, params) do
    with {:ok, params} <- params(params),
         {:ok, count} <- adapter.execute(connection, sql, params) do
      count
    else
      _error -> :error
    end
  end

  @wasm "_db_begin () -> boolean"
  def db_begin(_wasm, {adapter, connection}), do: adapter.begin(connection) == :ok

  @wasm "_db_commit () -> boolean"
  def db_commit(_wasm, {adapter, connection}), do: adapter.commit(connection) == :ok

  @wasm "_db_rollback () -> boolean"
  def db_rollback(_wasm, {adapter, connection}), do: adapter.rollback(connection) == :ok

  defp params(""), do: {:ok, []}

  defp params(text) do
    case JSON.decode(text) do
      {:ok, params} when is_list(params) -> {:ok, params}
      _other -> :error
    end
  end
end
