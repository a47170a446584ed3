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

  @doc "See `Beamr.WASI.run/2`."
  @spec run(Beamr.Module.t() | binary(), options()) :: result(non_neg_integer())
  def run(module, opts \\ []) do
    opts = options(opts)
    opts = if is_struct(module), do: erlang_imports(opts, module), else: opts
    Beamr.WASI.run(module, opts)
  end

  @doc "See `Beamr.WASI.take_output/2`."
  @spec take_output(Beamr.guest(), :stdout | :stderr) :: binary()
  def take_output(guest, stream), do: Beamr.WASI.take_output(guest, stream)

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
  def call(guest, function, args, opts \\ []) when length(args) >= 0 do
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

  @doc "See `Beamr.IO.pages/2`."
  @spec pages(Beamr.guest(), options()) :: result(non_neg_integer())
  def pages(guest, opts \\ []), do: Beamr.IO.pages(guest, options(opts))

  @doc "See `Beamr.IO.grow/3`."
  @spec grow(Beamr.guest(), non_neg_integer(), options()) :: result(non_neg_integer())
  def grow(guest, pages, opts \\ []), do: Beamr.IO.grow(guest, pages, options(opts))

  @doc "See `Beamr.IO.valid_range?/4`."
  @spec is_valid_range(Beamr.guest(), non_neg_integer(), non_neg_integer(), options()) ::
          boolean()
  def is_valid_range(guest, offset, length, opts \\ []) do
    Beamr.IO.valid_range?(guest, offset, length, options(opts))
  end

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

  @doc "See `Beamr.IO.read_utf8/4`."
  @spec read_utf8(Beamr.guest(), non_neg_integer(), non_neg_integer(), options()) ::
          result(binary())
  def read_utf8(guest, offset, length, opts \\ []) do
    Beamr.IO.read_utf8(guest, offset, length, options(opts))
  end

  @doc "See `Beamr.IO.write_utf8/4`."
  @spec write_utf8(Beamr.guest(), non_neg_integer(), binary(), options()) ::
          result(non_neg_integer())
  def write_utf8(guest, offset, string, opts \\ []) do
    Beamr.IO.write_utf8(guest, offset, string, options(opts))
  end

  for type <- [:i8, :u8, :i16, :u16, :i32, :u32, :i64, :u64, :f32, :f64] do
    read = :"read_#{type}"
    write = :"write_#{type}"

    @doc "See `Beamr.IO.#{read}/3`."
    @spec unquote(read)(Beamr.guest(), non_neg_integer(), options()) :: result(Beamr.IO.value())
    def unquote(read)(guest, offset, opts \\ []) do
      Beamr.IO.unquote(read)(guest, offset, options(opts))
    end

    @doc "See `Beamr.IO.#{write}/4`."
    @spec unquote(write)(Beamr.guest(), non_neg_integer(), Beamr.IO.value(), options()) ::
            :ok | {:error, map()}
    def unquote(write)(guest, offset, value, opts \\ []) do
      Beamr.IO.unquote(write)(guest, offset, value, options(opts))
    end
  end

  @doc "See `Beamr.IO.read_array/5`."
  @spec read_array(
          Beamr.guest(),
          non_neg_integer(),
          Beamr.IO.type(),
          non_neg_integer(),
          options()
        ) :: result([Beamr.IO.value()] | binary())
  def read_array(guest, offset, type, count, opts \\ []) do
    Beamr.IO.read_array(guest, offset, type, count, options(opts))
  end

  @doc "See `Beamr.IO.write_array/5`."
  @spec write_array(
          Beamr.guest(),
          non_neg_integer(),
          Beamr.IO.type(),
          [Beamr.IO.value()] | binary(),
          options()
        ) :: :ok | {:error, map()}
  def write_array(guest, offset, type, values, opts \\ []) do
    Beamr.IO.write_array(guest, offset, type, values, options(opts))
  end

  @doc "See `Beamr.IO.read_many/3`."
  @spec read_many(
          Beamr.guest(),
          [{non_neg_integer(), Beamr.IO.type() | non_neg_integer()}],
          options()
        ) :: result([Beamr.IO.value() | binary()])
  def read_many(guest, places, opts \\ []) do
    Beamr.IO.read_many(guest, places, options(opts))
  end

  @doc "See `Beamr.IO.write_many/3`."
  @spec write_many(
          Beamr.guest(),
          [
            {non_neg_integer(), Beamr.IO.type(), Beamr.IO.value()}
            | {non_neg_integer(), iodata()}
          ],
          options()
        ) :: :ok | {:error, map()}
  def write_many(guest, writes, opts \\ []) do
    Beamr.IO.write_many(guest, writes, options(opts))
  end

  @doc "See `Beamr.IO.fill/5`."
  @spec fill(Beamr.guest(), non_neg_integer(), byte(), non_neg_integer(), options()) ::
          :ok | {:error, map()}
  def fill(guest, offset, byte, length, opts \\ []) do
    Beamr.IO.fill(guest, offset, byte, length, options(opts))
  end

  @doc "See `Beamr.IO.copy/5`."
  @spec copy(
          Beamr.guest(),
          non_neg_integer(),
          non_neg_integer() | {Beamr.guest(), non_neg_integer()},
          non_neg_integer(),
          options()
        ) :: :ok | {:error, map()}
  def copy(guest, destination, source, length, opts \\ []) do
    Beamr.IO.copy(guest, destination, source, length, options(opts))
  end

  @doc "See `Beamr.IO.compare/5`."
  @spec compare(
          Beamr.guest(),
          non_neg_integer(),
          non_neg_integer() | {Beamr.guest(), non_neg_integer()},
          non_neg_integer(),
          options()
        ) :: result(:lt | :eq | :gt)
  def compare(guest, offset, other, length, opts \\ []) do
    Beamr.IO.compare(guest, offset, other, length, options(opts))
  end

  @doc "See `Beamr.IO.find/5`. Nothing found is `undefined`."
  @spec find(Beamr.guest(), non_neg_integer(), non_neg_integer(), binary(), options()) ::
          result(non_neg_integer() | :undefined)
  def find(guest, offset, length, pattern, opts \\ []) do
    with {:ok, found} <- Beamr.IO.find(guest, offset, length, pattern, options(opts)),
         do: {:ok, to_erlang(found)}
  end

  @doc "See `Beamr.IO.hexdump/4`."
  @spec hexdump(Beamr.guest(), non_neg_integer(), non_neg_integer(), options()) ::
          result(binary())
  def hexdump(guest, offset, length, opts \\ []) do
    Beamr.IO.hexdump(guest, offset, length, options(opts))
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

  @doc "See `Beamr.IO.with_string/3`."
  @spec with_string(Beamr.guest(), iodata(), (pos_integer() -> value)) :: result(value)
        when value: term()
  def with_string(guest, string, function), do: Beamr.IO.with_string(guest, string, function)

  @doc "See `Beamr.IO.with_bytes/3`."
  @spec with_bytes(Beamr.guest(), iodata(), (pos_integer(), non_neg_integer() -> value)) ::
          result(value)
        when value: term()
  def with_bytes(guest, bytes, function), do: Beamr.IO.with_bytes(guest, bytes, function)

  @doc "See `Beamr.IO.with_alloc/4`. As there, the function is the last argument."
  @spec with_alloc(Beamr.guest(), non_neg_integer(), options(), (non_neg_integer() -> value)) ::
          result(value)
        when value: term()
  def with_alloc(guest, size, opts \\ [], function) do
    Beamr.IO.with_alloc(guest, size, options(opts), function)
  end

  @doc "See `Beamr.IO.held/1`. A process of another node is `undefined`."
  @spec held(Beamr.guest()) :: result([{pos_integer(), non_neg_integer(), pid() | :undefined}])
  def held(guest) do
    with {:ok, held} <- Beamr.IO.held(guest) do
      {:ok, for({pointer, size, holder} <- held, do: {pointer, size, to_erlang(holder)})}
    end
  end

  @doc "See `Beamr.IO.held_count/1`."
  @spec held_count(Beamr.guest()) :: result(non_neg_integer())
  def held_count(guest), do: Beamr.IO.held_count(guest)

  @doc ~S"""
  See `Beamr.Struct.new/2`. A layout that a module in Elixir says goes by that module's name.

      Point = beamr:layout([{x, f64}, {y, f64}]),
      ok = beamr:write_struct(Wasm, 1024, Point, #{x => 1, y => 0.5}),
      {ok, #{x := 1.0, y := 0.5}} = beamr:read_struct(Wasm, 1024, Point).
  """
  @spec layout([tuple()], options()) :: Beamr.Struct.t()
  def layout(fields, opts \\ []), do: Beamr.Struct.new(fields, options(opts))

  @doc "See `Beamr.Struct.read/4`. A null pointer that was followed is `undefined`."
  @spec read_struct(Beamr.guest(), non_neg_integer(), Beamr.Struct.layout(), options()) ::
          result(map())
  def read_struct(guest, pointer, layout, opts \\ []) do
    guest |> Beamr.Struct.read(pointer, layout, options(opts)) |> followed()
  end

  @doc "See `Beamr.Struct.read_array/5`. A null pointer that was followed is `undefined`."
  @spec read_structs(
          Beamr.guest(),
          non_neg_integer(),
          Beamr.Struct.layout(),
          non_neg_integer(),
          options()
        ) :: result([map()])
  def read_structs(guest, pointer, layout, count, opts \\ []) do
    guest |> Beamr.Struct.read_array(pointer, layout, count, options(opts)) |> followed()
  end

  defp followed({:ok, value}), do: {:ok, without_nil(value)}
  defp followed(error), do: error

  defp without_nil(%{__struct__: _} = struct), do: struct
  defp without_nil(map) when is_map(map), do: Map.new(map, fn {k, v} -> {k, without_nil(v)} end)
  defp without_nil(list) when is_list(list), do: Enum.map(list, &without_nil/1)
  defp without_nil(value), do: to_erlang(value)

  @doc "See `Beamr.Struct.write/5`."
  @spec write_struct(Beamr.guest(), non_neg_integer(), Beamr.Struct.layout(), map(), options()) ::
          :ok | {:error, map()}
  def write_struct(guest, pointer, layout, value, opts \\ []) do
    Beamr.Struct.write(guest, pointer, layout, value, options(opts))
  end

  @doc "See `Beamr.Struct.write_array/5`."
  @spec write_structs(
          Beamr.guest(),
          non_neg_integer(),
          Beamr.Struct.layout(),
          [map()],
          options()
        ) :: :ok | {:error, map()}
  def write_structs(guest, pointer, layout, values, opts \\ []) do
    Beamr.Struct.write_array(guest, pointer, layout, values, options(opts))
  end

  @doc "See `Beamr.Struct.update/5`."
  @spec update_struct(Beamr.guest(), non_neg_integer(), Beamr.Struct.layout(), map(), options()) ::
          :ok | {:error, map()}
  def update_struct(guest, pointer, layout, fields, opts \\ []) do
    Beamr.Struct.update(guest, pointer, layout, fields, options(opts))
  end

  @doc """
  See `Beamr.Struct.call/5`. With `undefined` for the layout, the function returns no struct.
  """
  @spec call_struct(
          Beamr.guest(),
          binary() | Beamr.funcref(),
          list(),
          Beamr.Struct.layout() | :undefined,
          options()
        ) :: result(map() | list())
  def call_struct(guest, function, args, layout, opts \\ []) when length(args) >= 0 do
    args = Enum.map(args, &from_erlang/1)

    guest
    |> Beamr.Struct.call(function, args, from_erlang(layout), options(opts))
    |> followed()
  end

  @doc "See `Beamr.View.new/4`. The functions of `Beamr.View` take what this answers."
  @spec view(Beamr.guest(), non_neg_integer(), non_neg_integer(), options()) ::
          result(Beamr.View.t())
  def view(guest, pointer, length, opts \\ []) do
    Beamr.View.new(guest, pointer, length, options(opts))
  end

  @doc """
  See `Beamr.Allocator.Bump.new/2`. The functions of `Beamr.Allocator` take what this answers.
  """
  @spec bump_allocator(Beamr.guest(), options()) :: result(Beamr.Allocator.Bump.t())
  def bump_allocator(guest, opts \\ []), do: Beamr.Allocator.Bump.new(guest, options(opts))

  @doc """
  See `Beamr.Allocator.Stack.new/2`. The functions of `Beamr.Allocator` take what this answers,
  and so do those of `Beamr.Allocator.Stack`.
  """
  @spec stack_allocator(Beamr.guest(), options()) :: result(Beamr.Allocator.Stack.t())
  def stack_allocator(guest, opts \\ []), do: Beamr.Allocator.Stack.new(guest, options(opts))

  @doc """
  See `Beamr.Allocator.Guest.new/2`. The functions of `Beamr.Allocator` take what this answers.
  """
  @spec malloc_allocator(Beamr.guest(), options()) :: result(Beamr.Allocator.Guest.t())
  def malloc_allocator(guest, opts \\ []), do: Beamr.Allocator.Guest.new(guest, options(opts))

  @doc "See `Beamr.Allocator.alloc/3`."
  @spec alloc(Beamr.Allocator.t(), integer(), options()) :: result(non_neg_integer())
  def alloc(allocator, size, opts \\ []) do
    Beamr.Allocator.alloc(allocator, size, options(opts))
  end

  @doc "See `Beamr.Module.imports/1`."
  @spec imports(Beamr.Module.t()) :: [{binary(), binary(), term()}]
  def imports(module) do
    for {from, name, type} <- Beamr.Module.imports(module), do: {from, name, type(type)}
  end

  @doc "See `Beamr.Module.exports/1`."
  @spec exports(Beamr.Module.t()) :: [{binary(), term()}]
  def exports(module),
    do: for({name, type} <- Beamr.Module.exports(module), do: {name, type(type)})

  @doc "See `Beamr.Module.serialize/1`."
  @spec serialize(Beamr.Module.t()) :: binary()
  def serialize(module), do: Beamr.Module.serialize(module)

  @doc "See `Beamr.Module.deserialize_trusted/2`."
  @spec deserialize_trusted(binary(), options()) :: result(Beamr.Module.t())
  def deserialize_trusted(binary, opts \\ []) do
    Beamr.Module.deserialize_trusted(binary, options(opts))
  end

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
    for {name, value} <- :proplists.unfold(opts), do: {name, option(name, value)}
  end

  defp option(:wasi, wasi) when is_map(wasi) or is_list(wasi), do: options(wasi)
  defp option(_name, value), do: from_erlang(value)

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

  defp wrap({module, name, {kind, _type}}, imports) when kind in [:global, :memory, :table] do
    case imports do
      %{^module => %{^name => {:global, :undefined}} = items} ->
        Map.put(imports, module, Map.put(items, name, {:global, nil}))

      %{^module => %{^name => {^kind, minimum, :undefined}} = items} ->
        Map.put(imports, module, Map.put(items, name, {kind, minimum, nil}))

      _ ->
        imports
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
