defmodule :beamr do
  @moduledoc ~S"""
  Beamr for Erlang: the same functions under an Erlang name.

  Options are proplists or maps; `undefined` stands for nothing where Elixir has nil, in options
  and in values that go to the guest or come from it. Errors are maps with a `reason`, and
  `format_error/1` makes text of them.

      {ok, Wasm} = beamr:instantiate(Source, #{imports => #{<<"env">> => #{<<"add">> => fun(_, A, B) -> A + B end}}}),
      {ok, [3]} = beamr:call(Wasm, <<"sum">>, [1, 2], [{timeout, 1000}]),
      {ok, Pointer} = beamr:write_string(Wasm, <<"hello">>),
      {ok, <<"hello">>} = beamr:read_string(Wasm, Pointer),
      ok = beamr:free(Wasm, Pointer).

  Guests are what they are in Elixir: instances, pids and names of servers, `{global, Name}`,
  `{via, Module, Name}` and `{Name, Node}`.
  """

  @typedoc "A proplist or a map."
  @type options :: :proplists.proplist() | map()
  @typedoc "A value, or an error: a map with a `reason`."
  @type result(value) :: {:ok, value} | {:error, map()}

  @doc "See `Beamr.compile/2`."
  @spec compile(binary(), options()) :: result(Beamr.Module.t())
  def compile(source, opts \\ []), do: Beamr.compile(source, options(opts))

  @doc "See `Beamr.compile_file/2`. Paths are strings of Erlang or binaries."
  @spec compile_file(:file.name_all(), options()) :: result(Beamr.Module.t())
  def compile_file(path, opts \\ []), do: Beamr.compile_file(path(path), options(opts))

  @doc "See `Beamr.instantiate/2`."
  @spec instantiate(Beamr.Module.t() | binary(), options()) :: result(Beamr.Instance.t())
  def instantiate(module, opts \\ [])

  def instantiate(source, opts) when is_binary(source) do
    opts = options(opts)

    with {:ok, module} <- Beamr.compile(source, fuel: Keyword.has_key?(opts, :fuel)) do
      instantiate(module, opts)
    end
  end

  def instantiate(module, opts),
    do: Beamr.instantiate(module, erlang_imports(options(opts), module))

  @doc "See `Beamr.Server.start_link/1`."
  @spec start_link(options()) :: GenServer.on_start()
  def start_link(opts), do: Beamr.start_link(server_options(opts))

  @doc ~S"""
  A child specification for a supervisor: see `Beamr.Server.child_spec/1`.

      init([]) ->
          {ok, {#{strategy => one_for_one},
                [beamr:child_spec(#{id => calculator, name => calculator, module => "calculator.wasm"})]}}.
  """
  @spec child_spec(options()) :: :supervisor.child_spec()
  def child_spec(opts), do: Beamr.Server.child_spec(server_options(opts))

  @doc "See `Beamr.call/4`."
  @spec call(Beamr.guest(), binary() | Beamr.funcref(), list(), options()) :: result(list())
  def call(guest, function, args, opts \\ []) do
    case Beamr.call(guest, function, Enum.map(args, &from_erlang/1), options(opts)) do
      {:ok, results} -> {:ok, Enum.map(results, &to_erlang/1)}
      error -> error
    end
  end

  @doc "See `Beamr.interrupt/1`."
  @spec interrupt(Beamr.guest()) :: :ok
  def interrupt(guest), do: Beamr.interrupt(guest)

  @doc "See `Beamr.close/1`."
  @spec close(Beamr.Instance.t()) :: :ok
  def close(instance), do: Beamr.close(instance)

  @doc "See `Beamr.IO.size/2`."
  @spec size(Beamr.guest(), options()) :: result(non_neg_integer())
  def size(guest, opts \\ []), do: Beamr.IO.size(guest, options(opts))

  @doc "See `Beamr.IO.read/4`."
  @spec read(Beamr.guest(), non_neg_integer(), non_neg_integer(), options()) :: result(binary())
  def read(guest, offset, length, opts \\ []) do
    Beamr.IO.read(guest, offset, length, options(opts))
  end

  @doc "See `Beamr.IO.write/4`."
  @spec write(Beamr.guest(), non_neg_integer(), iodata(), options()) :: :ok | {:error, map()}
  @spec write(Beamr.guest(), iodata(), non_neg_integer(), options()) :: :ok | {:error, map()}
  def write(guest, offset, data, opts \\ []) do
    Beamr.IO.write(guest, offset, data, options(opts))
  end

  @doc "See `Beamr.IO.read_string/4`."
  @spec read_string(Beamr.guest(), non_neg_integer()) :: result(binary())
  def read_string(guest, offset), do: Beamr.IO.read_string(guest, offset)

  @doc "See `Beamr.IO.read_string/4`."
  @spec read_string(Beamr.guest(), non_neg_integer(), pos_integer(), options()) ::
          result(binary())
  def read_string(guest, offset, chunk, opts \\ []) do
    Beamr.IO.read_string(guest, offset, chunk, options(opts))
  end

  @doc "See `Beamr.IO.write_string/2`."
  @spec write_string(Beamr.guest(), iodata()) :: result(pos_integer())
  def write_string(guest, string), do: Beamr.IO.write_string(guest, string)

  @doc "See `Beamr.IO.malloc/2`."
  @spec malloc(Beamr.guest(), non_neg_integer()) :: result(pos_integer())
  def malloc(guest, length), do: Beamr.IO.malloc(guest, length)

  @doc "See `Beamr.IO.free/2`."
  @spec free(Beamr.guest(), non_neg_integer()) :: :ok | {:error, map()}
  def free(guest, pointer), do: Beamr.IO.free(guest, pointer)

  @doc "See `Beamr.Module.imports/1`."
  @spec imports(Beamr.Module.t()) :: [{binary(), binary(), term()}]
  def imports(module) do
    for {from, name, type} <- Beamr.Module.imports(module), do: {from, name, type(type)}
  end

  @doc "See `Beamr.Module.exports/1`."
  @spec exports(Beamr.Module.t()) :: [{binary(), term()}]
  def exports(module),
    do: for({name, type} <- Beamr.Module.exports(module), do: {name, type(type)})

  @doc "See `Beamr.Instance.get_global/2`."
  @spec get_global(Beamr.guest(), binary()) :: result(term())
  def get_global(guest, name) do
    with {:ok, value} <- Beamr.Instance.get_global(guest, name), do: {:ok, to_erlang(value)}
  end

  @doc "See `Beamr.Instance.set_global/3`."
  @spec set_global(Beamr.guest(), binary(), term()) :: :ok | {:error, map()}
  def set_global(guest, name, value) do
    Beamr.Instance.set_global(guest, name, from_erlang(value))
  end

  @doc "See `Beamr.Instance.table_size/2`."
  @spec table_size(Beamr.guest(), binary()) :: result(non_neg_integer())
  def table_size(guest, name), do: Beamr.Instance.table_size(guest, name)

  @doc "See `Beamr.Instance.table_get/3`."
  @spec table_get(Beamr.guest(), binary(), non_neg_integer()) :: result(term())
  def table_get(guest, name, index) do
    with {:ok, value} <- Beamr.Instance.table_get(guest, name, index), do: {:ok, to_erlang(value)}
  end

  @doc "See `Beamr.Instance.table_set/4`."
  @spec table_set(Beamr.guest(), binary(), non_neg_integer(), term()) :: :ok | {:error, map()}
  def table_set(guest, name, index, value) do
    Beamr.Instance.table_set(guest, name, index, from_erlang(value))
  end

  @doc "See `Beamr.Instance.table_grow/4`."
  @spec table_grow(Beamr.guest(), binary(), non_neg_integer(), term()) ::
          result(non_neg_integer())
  def table_grow(guest, name, delta, value) do
    Beamr.Instance.table_grow(guest, name, delta, from_erlang(value))
  end

  @doc "See `Beamr.Instance.fuel/1`."
  @spec fuel(Beamr.guest()) :: result(non_neg_integer())
  def fuel(guest), do: Beamr.Instance.fuel(guest)

  @doc "See `Beamr.Instance.add_fuel/2`."
  @spec add_fuel(Beamr.guest(), non_neg_integer()) :: result(non_neg_integer())
  def add_fuel(guest, amount), do: Beamr.Instance.add_fuel(guest, amount)

  @doc "See `Beamr.Host.stub/3`."
  @spec stub(Beamr.Module.t(), Beamr.Host.stub(), :all | [binary() | {binary(), binary()}]) ::
          map()
  def stub(module, kind, only \\ :all), do: Beamr.Host.stub(module, kind, only)

  @doc "An error's text, as a binary."
  @spec format_error(map()) :: binary()
  def format_error(%{__exception__: true} = error), do: Exception.message(error)

  defp options(opts) when is_map(opts), do: opts |> Map.to_list() |> options()

  defp options(opts) when is_list(opts) do
    for {name, value} <- :proplists.unfold(opts), do: {name, from_erlang(value)}
  end

  defp server_options(opts) do
    opts = Enum.map(options(opts), &server_option/1)

    case Beamr.Server.compiled(opts)[:module] do
      %Beamr.Module{} = module -> opts |> Keyword.put(:module, module) |> erlang_imports(module)
      _ -> opts
    end
  end

  defp server_option({:module, path}) when is_list(path), do: {:module, path(path)}
  defp server_option(option), do: option

  # Functions behind imports that take or return references are given `undefined` for null, and
  # may return it.
  defp erlang_imports(opts, module) do
    case Keyword.fetch(opts, :imports) do
      {:ok, imports} when is_map(imports) ->
        Keyword.put(opts, :imports, Enum.reduce(Beamr.Module.imports(module), imports, &wrap/2))

      _ ->
        opts
    end
  end

  defp wrap({module, name, {:function, %{params: params, results: results}}}, imports) do
    with true <- Enum.any?(params ++ results, &reference?/1),
         %{^module => %{^name => function} = functions}
         when is_function(function, length(params) + 1) <- imports do
      wrapped = fn wasm, args ->
        function |> apply([wasm | Enum.map(args, &to_erlang/1)]) |> result_from_erlang()
      end

      Map.put(imports, module, Map.put(functions, name, {:list, wrapped}))
    else
      _ -> imports
    end
  end

  defp wrap(_import, imports), do: imports

  defp reference?(type), do: type not in [:i32, :i64, :f32, :f64, :v128]

  defp result_from_erlang(results) when is_list(results), do: Enum.map(results, &from_erlang/1)
  defp result_from_erlang(result), do: from_erlang(result)

  defp path(path) when is_list(path), do: List.to_string(path)
  defp path(path), do: path

  defp type({kind, fields}),
    do: {kind, Map.new(fields, fn {key, value} -> {key, to_erlang(value)} end)}

  defp from_erlang(:undefined), do: nil
  defp from_erlang(value), do: value

  defp to_erlang(nil), do: :undefined
  defp to_erlang(value), do: value
end
