defmodule Beamr.Host do
  @moduledoc ~S"""
  A set of imports, written as a module: functions with their WebAssembly signatures, which are
  checked when a guest is linked.

      defmodule Calculator do
        use Beamr.Host, module: "env"

        @wasm "(i32, i32) -> i32"
        def add(_wasm, a, b), do: a + b

        @wasm "math_sin, math.sin (f64) -> f64"
        def sine(_wasm, x), do: :math.sin(x)

        @wasm "log (i32)"
        def log(_wasm, prefix, n), do: IO.puts([prefix, Integer.to_string(n)])
      end

      Beamr.instantiate(module, hosts: [{Calculator, "n = "}])

  `@wasm` before a function makes it an import of the module that `module:` names. Before the
  parentheses there may be the names it is imported by, if they are not the function's own. Each
  function takes the instance and then the guest's arguments. One that takes one more, as `log`
  does, gets the host's state after the instance: what `init/1` made of the argument in `hosts:`,
  or else that argument itself (nil for a host without one).

  Several `@wasm` before one function, or functions with different parameters under one name, are
  signatures to choose from: **the type of the import in the guest's module tells which**. If none
  fits, the `Beamr.LinkError` says what was wanted and what there was.

  ## Using hosts

  `hosts:` takes any number of them, for `Beamr.instantiate/2` and `Beamr.Server` alike. What is
  in `imports:` comes before any host, and a host before those after it. Hosts are opened for each
  instance, so a server that starts its guest afresh has a fresh state. What is still missing is
  handed to `c:Beamr.Server.handle_import/4` if there is one, and then to `stubs:`.

  A host may also be plain data, the only form in Erlang: a map as in `imports:`, in which
  `{:function, params, results, function}` gives the signature with the function, and a list gives
  several.

      iex> env = %{"half" => {:function, [:f64], [:f64], fn _wasm, x -> x / 2 end}}
      iex> guest = ~s|(module (import "env" "half" (func $half (param f64) (result f64)))
      ...>   (func (export "f") (result f64) (call $half (f64.const 3))))|
      iex> wasm = Beamr.instantiate!(guest, hosts: [%{"env" => env}])
      iex> Beamr.call(wasm, "f", [])
      {:ok, [1.5]}
      iex> {:error, error} = Beamr.instantiate(String.replace(guest, "f64", "f32"), hosts: [%{"env" => env}])
      iex> [problem] = error.imports
      iex> {problem.problem, problem.wanted, problem.given}
      {:type, {:function, %{params: [:f32], results: [:f32]}}, {:function, %{params: [:f64], results: [:f64]}}}

  ## Types of your own

  With `types: module`, signatures may have other types than WebAssembly's: strings, booleans,
  handles. The module says how such a value is passed (see the callbacks), and the functions take
  and return plain Elixir terms. `Beamr.Host.Clean` is built this way; its whole `string_concat`,
  by pointer and length and by pointer alone, is

      @wasm "string_concat, string.concat (string, string) -> string"
      def string_concat(_wasm, a, b), do: a <> b

  ## Stubs

  To run a guest that needs only some of what it imports, `stubs: :zero` or `stubs: :trap` stands
  for all the functions that nobody provides. See `stub/3` for choosing among them.

      iex> guest = ~s|(module (import "env" "log" (func $log (result i64))) (func (export "f") (result i64) (call $log)))|
      iex> Beamr.call(Beamr.instantiate!(guest, stubs: :zero), "f", [])
      {:ok, [0]}
      iex> {:error, error} = Beamr.call(Beamr.instantiate!(guest, stubs: :trap), "f", [])
      iex> Exception.message(error.reason)
      ~s|"env" "log" is only a stub|
  """

  alias Beamr.{Instance, StubError}

  @typedoc "A host: a module of imports, perhaps with the argument of its `init/1`, or a map."
  @type t :: module() | {module(), arg :: term()} | Instance.imports()

  @typedoc "A function with its signature, or several of them to choose from."
  @type signed ::
          {:function, [Beamr.Module.value_type()], [Beamr.Module.value_type()],
           function() | {:list, function()}}
          | [signed()]

  @typedoc "What a stub does: answer zeros (nil for references), or fail with the import's name."
  @type stub :: :zero | :trap

  @doc "Makes the state that functions with one more argument get; called for each instance."
  @callback init(arg :: term()) :: state :: term()

  @doc """
  Of the module in `types:`: what the hosts of one instance share, made once for each instance
  from its module and the arguments of all of them.
  """
  @callback shared(Beamr.Module.t(), args :: [term()]) :: term()

  @doc """
  Of the module in `types:`: the ways in which a parameter of the type may be passed. All of the
  same type are passed in the same way.
  """
  @callback parameter(type :: atom()) :: [[Beamr.Module.value_type()]]

  @doc "Of the module in `types:`: the ways in which a result of the type may be returned."
  @callback result(type :: atom()) :: [[Beamr.Module.value_type()]]

  @doc """
  Of the module in `types:`: the term that the guest's values stand for. At `:error` the function
  is not called, and `:error` is its result.
  """
  @callback load(type :: atom(), [Beamr.value()], Instance.t(), shared :: term()) ::
              {:ok, term()} | :error

  @doc "Of the module in `types:`: the guest's values for a term, as an import returns them."
  @callback store(
              type :: atom(),
              [Beamr.Module.value_type()],
              term(),
              Instance.t(),
              shared :: term()
            ) :: term()

  @optional_callbacks init: 1, shared: 2, parameter: 1, result: 1, load: 4, store: 5

  @values [:i32, :i64, :f32, :f64, :v128, :funcref, :externref]

  # The hosts that are named when a guest imports what they have and nobody provides it.
  @known [Beamr.Host.Clean]

  ## Declaring

  @doc false
  defmacro __using__(opts) do
    quote do
      @behaviour Beamr.Host
      @beamr_host unquote(opts)
      Module.register_attribute(__MODULE__, :wasm, accumulate: true)
      Module.register_attribute(__MODULE__, :beamr_wasm, accumulate: true)
      @on_definition Beamr.Host
      @before_compile Beamr.Host
    end
  end

  @doc false
  def __on_definition__(env, kind, name, args, _guards, _body) do
    case Module.get_attribute(env.module, :wasm) do
      [] ->
        :ok

      declarations when kind == :def ->
        Module.delete_attribute(env.module, :wasm)
        hide(env)
        for text <- Enum.reverse(declarations), do: put(env, {text, name, length(args), env.line})

      _declarations ->
        invalid!(env, env.line, "@wasm is for public functions, not for #{kind} #{name}")
    end
  end

  # Functions are for guests: Elixir's documentation has those that say something of themselves.
  defp hide(env) do
    if Module.get_attribute(env.module, :doc) == nil,
      do: Module.put_attribute(env.module, :doc, {env.line, false})
  end

  defp put(env, declaration), do: Module.put_attribute(env.module, :beamr_wasm, declaration)

  @doc false
  defmacro __before_compile__(env) do
    opts = Module.get_attribute(env.module, :beamr_host)
    module = opts[:module]
    types = opts[:types]

    unless is_binary(module),
      do: invalid!(env, env.line, "use Beamr.Host needs module: with a string")

    functions =
      env.module
      |> Module.get_attribute(:beamr_wasm)
      |> Enum.reverse()
      |> Enum.flat_map(&declared(&1, types, env))
      |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))

    quote do
      @doc false
      def __wasm__ do
        {unquote(types), %{unquote(module) => unquote(Macro.escape(functions))}}
      end
    end
  end

  # The names and signatures of one declaration.
  defp declared({text, function, arity, line}, types, env) do
    {names, params, results} = parse(text, env, line)
    names = if names == [], do: [Atom.to_string(function)], else: names

    unless (arity - length(params)) in [1, 2] do
      invalid!(
        env,
        line,
        "#{function}/#{arity} must take the instance, the host's state if it wants it, and the " <>
          "#{length(params)} arguments of #{inspect(text)}"
      )
    end

    candidates =
      for {params, loads} <- parameters(params, types, env, line),
          {results, store} <- results(results, types, env, line) do
        %{
          params: params,
          results: results,
          loads: loads,
          store: store,
          function: function,
          state: arity - length(loads) == 2
        }
      end

    for name <- names, candidate <- candidates, do: {name, candidate}
  end

  @signature ~r/\A\s*([^()]*?)\s*\(([^()]*)\)\s*(?:->\s*(?|\(([^()]*)\)|([^()\s][^()]*)))?\s*\z/

  defp parse(text, env, line) do
    with true <- is_binary(text),
         [_all, names, params | results] <- Regex.run(@signature, text) do
      {list(names), types(params), types(Enum.join(results))}
    else
      _ ->
        invalid!(
          env,
          line,
          "@wasm must be a string like \"(i32, i32) -> i32\", given: #{inspect(text)}"
        )
    end
  end

  defp list(text),
    do: text |> String.split(",") |> Enum.map(&String.trim/1) |> Enum.reject(&(&1 == ""))

  defp types(text), do: text |> list() |> Enum.map(&String.to_atom/1)

  # Each way to pass the parameters: the values' types, and of each parameter its own type and
  # how many values it takes.
  defp parameters(params, types, env, line) do
    for forms <- choices(params, & &1, types, :parameter, env, line) do
      {Enum.flat_map(params, &forms[&1]), for(type <- params, do: {type, length(forms[type])})}
    end
  end

  defp results(results, types, env, line) do
    own = Enum.reject(results, &(&1 in @values))

    if own != [] and length(results) > 1,
      do: invalid!(env, line, "a result of the type #{hd(own)} must be the only one")

    for forms <- choices(results, & &1, types, :result, env, line) do
      {Enum.flat_map(results, &forms[&1]), List.first(own)}
    end
  end

  defp choices(used, key, types, callback, env, line) do
    used
    |> Enum.uniq()
    |> Enum.reduce([%{}], fn type, choices ->
      for choice <- choices, form <- forms(type, types, callback, env, line) do
        Map.put(choice, key.(type), form)
      end
    end)
  end

  defp forms(type, _types, _callback, _env, _line) when type in @values, do: [[type]]

  defp forms(type, types, callback, env, line) do
    with true <- types != nil, [_ | _] = forms <- apply(types, callback, [type]) do
      forms
    else
      _ -> invalid!(env, line, "no type of WebAssembly: #{type}")
    end
  end

  defp invalid!(env, line, description) do
    raise CompileError, file: env.file, line: line, description: description
  end

  ## Linking

  @doc false
  @spec check!(term()) :: :ok
  def check!(hosts) when is_list(hosts) do
    Enum.each(hosts, fn host ->
      unless host?(host),
        do: raise(ArgumentError, ":hosts has what is no host: #{inspect(host)}")
    end)
  end

  def check!(hosts), do: raise(ArgumentError, ":hosts must be a list, given: #{inspect(hosts)}")

  defp host?(host) when is_map(host), do: not is_struct(host)
  defp host?({module, _arg}) when is_atom(module), do: module?(module)
  defp host?(module) when is_atom(module), do: module?(module)
  defp host?(_other), do: false

  defp module?(module), do: callback?(module, :__wasm__, 0)

  @doc false
  @spec check_stubs!(term()) :: :ok
  def check_stubs!(stubs) when stubs in [nil, :zero, :trap], do: :ok

  def check_stubs!(stubs) do
    raise ArgumentError, ":stubs must be :zero or :trap, given: #{inspect(stubs)}"
  end

  @doc false
  # Makes what the hosts need for one instance.
  @spec open(map(), Beamr.Module.t()) :: map()
  def open(%{hosts: hosts} = imports, module) do
    hosts = for host <- hosts, do: described(host)

    args = for {module, arg, types, _functions} <- hosts, module != nil, do: {types, arg}

    shared =
      for {types, _arg} <- Enum.uniq_by(args, &elem(&1, 0)), types != nil, into: %{} do
        own = for {^types, arg} <- args, do: arg
        {types, if(callback?(types, :shared, 2), do: types.shared(module, own))}
      end

    opened =
      for {host, arg, types, functions} <- hosts do
        {host, state(host, arg), types, shared[types], functions}
      end

    %{imports | hosts: opened}
  end

  def open(imports, _module), do: imports

  defp described(functions) when is_map(functions), do: {nil, nil, nil, functions}

  defp described({module, arg}) do
    {types, functions} = module.__wasm__()
    {module, arg, types, functions}
  end

  defp described(module), do: described({module, nil})

  # What is not loaded yet exports nothing.
  defp callback?(module, name, arity) do
    Code.ensure_loaded?(module) and function_exported?(module, name, arity)
  end

  defp state(nil, _arg), do: nil
  defp state(host, arg), do: if(callback?(host, :init, 1), do: host.init(arg), else: arg)

  @doc false
  # What the hosts have for an import: a function that fits, or the types of those that do not.
  @spec find(map(), String.t(), String.t(), Beamr.Module.extern_type()) ::
          {:ok, term()} | {:wrong, [term()]} | :error
  def find(%{hosts: hosts}, module, name, type) do
    found = Enum.map(hosts, &find_in(&1, module, name, type))

    case {List.keyfind(found, :ok, 0), for({:wrong, given} <- found, do: given)} do
      {{:ok, _function} = ok, _wrong} -> ok
      {nil, []} -> :error
      {nil, wrong} -> {:wrong, wrong}
    end
  end

  def find(_imports, _module, _name, _type), do: :error

  defp find_in({host, state, types, shared, functions}, module, name, type) do
    case functions do
      %{^module => %{^name => candidates}} when host != nil ->
        case Enum.find(candidates, &(of(&1) == type)) do
          nil -> {:wrong, one_or_all(Enum.map(candidates, &of/1))}
          candidate -> {:ok, function(candidate, host, state, types, shared)}
        end

      %{^module => %{^name => value}} ->
        with :error <- fit(value, type), do: {:wrong, given(value)}

      _ ->
        :error
    end
  end

  defp of(%{params: params, results: results}),
    do: {:function, %{params: params, results: results}}

  # The plainest function that does it: calls to it are what a host costs.
  defp function(%{store: nil} = candidate, host, state, types, shared) do
    %{function: function, loads: loads} = candidate
    plain = Enum.all?(loads, fn {type, _count} -> type in @values end)

    cond do
      plain and not candidate.state ->
        Function.capture(host, function, length(loads) + 1)

      plain ->
        {:list, fn wasm, args -> apply(host, function, [wasm, state | args]) end}

      true ->
        {:list,
         fn wasm, args ->
           case load(loads, args, types, wasm, shared) do
             :error -> :error
             terms -> call(candidate, host, state, wasm, terms)
           end
         end}
    end
  end

  defp function(%{store: store} = candidate, host, state, types, shared) do
    %{loads: loads, results: results} = candidate

    {:list,
     fn wasm, args ->
       result =
         case load(loads, args, types, wasm, shared) do
           :error -> :error
           terms -> call(candidate, host, state, wasm, terms)
         end

       types.store(store, results, result, wasm, shared)
     end}
  end

  defp call(%{state: false, function: function}, host, _state, wasm, terms),
    do: apply(host, function, [wasm | terms])

  defp call(%{function: function}, host, state, wasm, terms),
    do: apply(host, function, [wasm, state | terms])

  defp load([], [], _types, _wasm, _shared), do: []

  defp load([{type, _one} | loads], [value | values], types, wasm, shared) when type in @values do
    with rest when is_list(rest) <- load(loads, values, types, wasm, shared), do: [value | rest]
  end

  defp load([{type, count} | loads], values, types, wasm, shared) do
    {own, values} = Enum.split(values, count)

    with {:ok, term} <- types.load(type, own, wasm, shared),
         rest when is_list(rest) <- load(loads, values, types, wasm, shared) do
      [term | rest]
    end
  end

  @doc false
  # A function for an import out of what was given for it, if it fits.
  @spec fit(term(), Beamr.Module.extern_type()) :: {:ok, term()} | :error
  def fit({:function, params, results, function}, {:function, wanted} = type) do
    if wanted == %{params: params, results: results}, do: fit(function, type), else: :error
  end

  def fit(given, type) when is_list(given) do
    Enum.find_value(given, :error, fn one -> with :error <- fit(one, type), do: nil end)
  end

  def fit(function, {:function, %{params: params}})
      when is_function(function, length(params) + 1),
      do: {:ok, function}

  def fit({:list, function}, {:function, _type}) when is_function(function, 2),
    do: {:ok, {:list, function}}

  def fit(_given, _type), do: :error

  @doc false
  # What was given, as a `Beamr.LinkError` has it: types in the place of functions.
  @spec given(term()) :: term()
  def given({:function, params, results, _function}) when is_list(params) and is_list(results),
    do: {:function, %{params: params, results: results}}

  def given([_ | _] = several) do
    if List.improper?(several), do: several, else: one_or_all(Enum.map(several, &given/1))
  end

  def given(other), do: other

  defp one_or_all([one]), do: one
  defp one_or_all(several), do: several

  @doc false
  # The known host that has what nobody provides.
  @spec known(String.t(), String.t(), Beamr.Module.extern_type()) :: module() | nil
  def known(module, name, type) do
    Enum.find_value(@known, fn family ->
      Enum.find(family.groups(), fn host ->
        {_types, functions} = host.__wasm__()
        match?(%{^module => %{^name => _}}, functions) and fits?(functions[module][name], type)
      end)
    end)
  end

  defp fits?(candidates, type), do: Enum.any?(candidates, &(of(&1) == type))

  ## Stubs

  @doc """
  Stubs for the functions that a module imports: a host for `hosts:`, best the last of them.

  `:zero` answers zeros of the right types (nil for references); `:trap` ends the guest's call
  with a `Beamr.ImportError` that names the import, its `reason` a `Beamr.StubError`. `only`
  chooses among the imports: a list of modules' names and `{module, name}` pairs.

      iex> module = Beamr.compile!(~s|(module (import "env" "log" (func (param i32)))
      ...>   (import "env" "now" (func $now (result f64))) (func (export "f") (result f64) (call $now)))|)
      iex> log = fn _wasm, n -> IO.inspect(n) end
      iex> wasm = Beamr.instantiate!(module, imports: %{"env" => %{"log" => log}},
      ...>   hosts: [Beamr.Host.stub(module, :zero, [{"env", "now"}])])
      iex> Beamr.call(wasm, "f", [])
      {:ok, [0.0]}
  """
  @spec stub(Beamr.Module.t(), stub(), :all | [String.t() | {String.t(), String.t()}]) ::
          %{optional(String.t()) => %{optional(String.t()) => signed()}}
  def stub(%Beamr.Module{} = module, kind, only \\ :all)
      when kind in [:zero, :trap] and (only == :all or is_list(only)) do
    for {from, name, {:function, type}} <- Beamr.Module.imports(module),
        only == :all or from in only or {from, name} in only,
        reduce: %{} do
      stubs ->
        stub = {:function, type.params, type.results, stub_function(kind, from, name, type)}
        functions = Map.get(stubs, from, %{})
        # One name may be imported twice, by different types.
        signed = List.wrap(Map.get(functions, name, [])) ++ [stub]
        Map.put(stubs, from, Map.put(functions, name, one_or_all(signed)))
    end
  end

  @doc false
  @spec stub_function(stub(), String.t(), String.t(), map()) :: {:list, function()}
  def stub_function(:zero, _module, _name, %{results: results}) do
    zeros =
      case Enum.map(results, &zero/1) do
        [zero] -> zero
        zeros -> zeros
      end

    {:list, fn _wasm, _args -> zeros end}
  end

  def stub_function(:trap, module, name, _type) do
    {:list, fn _wasm, _args -> raise StubError, module: module, name: name end}
  end

  defp zero(type) when type in [:i32, :i64], do: 0
  defp zero(type) when type in [:f32, :f64], do: 0.0
  defp zero(:v128), do: <<0::128>>
  defp zero(_reference), do: nil
end
