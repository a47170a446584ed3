defmodule Beamr.Spec do
  @moduledoc false
  # Runs the scripts of WebAssembly's specification, as `native/spec` writes them: a list of
  # `{line, directive}`.
  #
  #   directive:  {:module | :definition, name | nil, source}
  #               {:instance, name | nil, definition | nil}
  #               {:register, as, name | nil}
  #               {:action, action}
  #               {:assert_return, action, [result]}
  #               {:assert_trap, action, message}, {:assert_exhaustion, call, message}
  #               {:assert_exception, action}
  #               {:assert_malformed | :assert_invalid | …_custom, source, message}
  #               {:assert_unlinkable, source, message}
  #               {:other, kind}
  #   source:     {:binary | :text, bytes}
  #   action:     {:invoke, name | nil, function, [value]}, {:get, name | nil, global},
  #               {:module, source}
  #   value:      {:i32 | :i64, integer}, {:f32 | :f64, bits}, {:v128, bytes},
  #               {:ref, :null}, {:extern | :host, integer}
  #   result:     the same, but floats may be :canonical or :arithmetic, vectors are lists of
  #               lanes, {:ref, :func | :extern | :any} is any but null, and {:either, [result]}
  #
  # Each directive is answered with `:ok`, `{:failed, text}`, `:unsupported` where the engine
  # says of a module that it does not have a feature, or `{:design, reason}` where Beamr cannot do
  # it by its design:
  #
  #   :sharing    it needs a memory, table, tag, mutable global or funcref of another instance
  #   :exception  exceptions are not caught by other instances than their own
  #   :type       types of imported globals and tables are the module's own, whatever is given, and
  #               those of references in functions are told apart by their hierarchies only
  #   :nan        NaNs have no payload in Elixir
  #   :reference  references other than funcref and externref have no Elixir form
  #   :text       source that does not begin with "\0asm" is text, and empty text is a module
  #   :other      threads have no counterpart

  alias Beamr.{CompileError, ImportError, Instance, LinkError, Trap}

  @reasons [
    {"unreachable", :unreachable},
    {"out of bounds memory access", :memory_out_of_bounds},
    {"out of bounds table access", :table_out_of_bounds},
    {"undefined", :table_out_of_bounds},
    {"uninitialized", :indirect_call_to_null},
    {"indirect call", :bad_signature},
    {"integer overflow", :integer_overflow},
    {"integer divide by zero", :integer_divide_by_zero},
    {"invalid conversion to integer", :bad_conversion_to_integer},
    {"null", :null_reference},
    {"out of bounds array access", :array_out_of_bounds},
    {"cast failure", :cast_failure},
    {"unaligned atomic", :unaligned_atomic},
    {"expected shared memory", :atomic_wait_on_unshared_memory},
    {"call stack exhausted", :stack_overflow}
  ]

  @doc "What came of each directive: `{line, kind, outcome}`. `options` are those of `Beamr.compile/2`."
  def run(script, options \\ []) do
    state = %{
      options: options,
      current: nil,
      named: %{},
      registered: %{},
      definitions: %{},
      # By instance, those that it calls; and those in which something is missing, see `taint/2`.
      owners: %{},
      tainted: []
    }

    {outcomes, _state} =
      Enum.map_reduce(script, state, fn {line, directive}, state ->
        {outcome, state} = directive(directive, state)
        {{line, elem(directive, 0), outcome}, state}
      end)

    outcomes
  end

  ## Directives

  defp directive({:module, name, source}, state) do
    case compile(source, state) do
      {:ok, module} -> start(module, name, state)
      {:error, error} -> {uncompiled(error), put(state, name, uncompiled(error))}
    end
  end

  defp directive({:definition, name, source}, state) do
    case compile(source, state) do
      {:ok, module} ->
        definitions = Map.merge(state.definitions, %{name => module, nil => module})
        {:ok, %{state | definitions: definitions}}

      {:error, error} ->
        {uncompiled(error), state}
    end
  end

  defp directive({:instance, name, definition}, state) do
    case state.definitions do
      %{^definition => module} -> start(module, name, state)
      _ -> {failed("there is no such definition"), put(state, name, failed("it is not there"))}
    end
  end

  defp directive({:register, as, name}, state) do
    {:ok, put_in(state.registered[as], instance(name, state))}
  end

  defp directive({:action, action}, state) do
    act(action, state, fn
      {:ok, _results} -> :ok
      {:error, error} -> failed(error)
    end)
  end

  defp directive({:assert_return, action, expected}, state) do
    act(action, state, fn
      {:ok, results} -> compare(results, expected)
      {:error, error} -> failed(error)
    end)
  end

  defp directive({:assert_trap, action, message}, state) do
    act(action, state, &trapped(&1, reason(message)))
  end

  defp directive({:assert_exhaustion, action, _message}, state) do
    act(action, state, &trapped(&1, [:stack_overflow]))
  end

  defp directive({:assert_exception, action}, state) do
    act(action, state, &trapped(&1, [:uncaught_exception]))
  end

  defp directive({:assert_unlinkable, source, _message}, state) do
    outcome =
      with {:ok, module} <- compile(source, state),
           {:ok, _wasm} <- Beamr.instantiate(module, imports: imports(module, state, :copies)) do
        linked(module)
      else
        {:error, %LinkError{}} -> :ok
        {:error, %CompileError{} = error} -> uncompiled(error)
        {:error, error} -> failed(error)
      end

    {outcome, state}
  end

  defp directive({kind, source, _message}, state)
       when kind in [
              :assert_malformed,
              :assert_invalid,
              :assert_malformed_custom,
              :assert_invalid_custom
            ] do
    outcome =
      case {compile(source, state), source} do
        {{:error, %CompileError{}}, _source} -> :ok
        {{:ok, _module}, {:binary, ""}} -> {:design, :text}
        {{:ok, _module}, _source} -> failed("it compiles")
      end

    {outcome, state}
  end

  defp directive({:other, _kind}, state), do: {{:design, :other}, state}

  ## Instances

  defp compile({_kind, bytes}, state), do: Beamr.compile(bytes, state.options)

  defp uncompiled(%{reason: :unsupported}), do: :unsupported
  defp uncompiled(error), do: failed(error)

  defp start(module, name, state) do
    case Beamr.instantiate(module, imports: imports(module, state, :shared)) do
      {:ok, wasm} ->
        state = put_in(state.owners[wasm], owners(module, state))
        {:ok, put(state, name, wasm)}

      {:error, error} ->
        outcome = if shared(module, state) == [], do: failed(error), else: {:design, :sharing}
        {outcome, state |> taint(shared(module, state)) |> put(name, outcome)}
    end
  end

  defp put(state, nil, wasm), do: %{state | current: wasm}

  defp put(state, name, wasm) do
    %{state | current: wasm, named: Map.put(state.named, name, wasm)}
  end

  defp instance(nil, state), do: state.current
  defp instance(name, state), do: state.named[name]

  # What another instance would have written to their memories and tables is not there.
  defp taint(state, owners), do: %{state | tainted: owners ++ state.tainted}

  defp tainted?(wasm, state) do
    wasm in state.tainted or Enum.any?(Map.get(state.owners, wasm, []), &tainted?(&1, state))
  end

  # The instances whose memories and so on the module imports.
  defp shared(module, state) do
    for {from, _name, {kind, type}} <- Beamr.Module.imports(module),
        owner = state.registered[from],
        kind != :function or owner == {:design, :sharing} or references?(type),
        uniq: true,
        do: owner
  end

  defp owners(module, state) do
    for {from, _name, _type} <- Beamr.Module.imports(module),
        owner = state.registered[from],
        uniq: true,
        do: owner
  end

  defp references?(%{params: params, results: results}) do
    Enum.any?(params ++ results, &(&1 not in [:i32, :i64, :f32, :f64, :v128, :externref]))
  end

  # A module that should not have linked did.
  defp linked(module) do
    case for {_, _, {kind, type}} <- Beamr.Module.imports(module), kind == :memory, do: type do
      [] -> {:design, :type}
      memories -> failed("it links: #{inspect(memories)}")
    end
  end

  ## Imports

  # Functions of other instances are bridged by Elixir functions, and immutable globals copied.
  # Copies of memories and tables are given only where it is asked whether they would link.
  defp imports(module, state, how) do
    for {from, name, type} <- Beamr.Module.imports(module), reduce: %{} do
      imports ->
        case given(from, name, type, state, how) do
          nil -> imports
          given -> Map.update(imports, from, %{name => given}, &Map.put(&1, name, given))
        end
    end
  end

  defp given("spectest", name, type, _state, _how), do: spectest(name, type)

  defp given(from, name, _type, state, how) do
    with %Instance{} = owner <- state.registered[from],
         {^name, type} <- List.keyfind(Beamr.Module.exports(owner.module), name, 0) do
      bridge(type, owner, name, how)
    else
      _ -> nil
    end
  end

  defp bridge({:function, %{params: params, results: results}}, owner, name, _how) do
    {:function, params, results,
     {:list,
      fn _wasm, args ->
        case Beamr.call!(owner, name, args, timeout: :infinity) do
          [result] -> result
          results -> results
        end
      end}}
  end

  defp bridge({:global, %{mutable: false}}, owner, name, _how) do
    {:global, Instance.get_global!(owner, name)}
  end

  defp bridge({:memory, type}, owner, name, :copies) do
    {:memory, div(Beamr.IO.size!(owner, memory: name), type.page_size), type.maximum}
  end

  defp bridge({:table, type}, owner, name, :copies) do
    {:table, Instance.table_size!(owner, name), type.maximum}
  end

  defp bridge({:global, _type}, _owner, _name, :copies), do: :global
  defp bridge(_type, _owner, _name, _how), do: nil

  defp spectest("print" <> _ = name, _type) do
    params =
      case name do
        "print" -> []
        "print_i32_f32" -> [:i32, :f32]
        "print_f64_f64" -> [:f64, :f64]
        "print_" <> type when type in ["i32", "i64", "f32", "f64"] -> [String.to_atom(type)]
      end

    {:function, params, [], {:list, fn _wasm, _args -> nil end}}
  end

  defp spectest("global_i" <> _, _type), do: {:global, 666}
  defp spectest("global_f" <> _, _type), do: {:global, 666.6}
  defp spectest("memory", _type), do: {:memory, 1, 2}
  defp spectest("table", _type), do: {:table, 10, 20}
  defp spectest("table64", _type), do: {:table, 10, 20}
  defp spectest(_name, _type), do: nil

  ## Actions

  defp act({:module, source}, state, judge) do
    with {:ok, module} <- compile(source, state),
         {:error, %LinkError{}} = unlinked <-
           Beamr.instantiate(module, imports: imports(module, state, :shared)) do
      case shared(module, state) do
        [] -> {judge.(unlinked), state}
        owners -> {{:design, :sharing}, taint(state, owners)}
      end
    else
      {:error, %CompileError{} = error} -> {uncompiled(error), state}
      other -> {judge.(other), state}
    end
  end

  defp act(action, state, judge) do
    case {instance(elem(action, 1), state), action} do
      {outcome, _action} when outcome == :unsupported or is_tuple(outcome) ->
        {outcome, state}

      {%Instance{} = wasm, {:get, _module, name}} ->
        result = with {:ok, value} <- Instance.get_global(wasm, name), do: {:ok, [value]}
        {excuse(judge.(result), result, wasm, [], state), state}

      {%Instance{} = wasm, {:invoke, _module, function, args}} ->
        result = Beamr.call(wasm, function, Enum.map(args, &argument/1), timeout: 60_000)
        {excuse(judge.(result), result, wasm, args, state), state}

      {_none, _action} ->
        {failed("there is no instance"), state}
    end
  end

  defp excuse({:failed, _text} = failed, result, wasm, args, state) do
    cond do
      tainted?(wasm, state) ->
        {:design, :sharing}

      match?({:error, %ImportError{reason: %Trap{reason: :uncaught_exception}}}, result) ->
        {:design, :exception}

      Enum.any?(args, &payload?/1) ->
        {:design, :nan}

      Enum.any?(args, &match?({:host, _n}, &1)) ->
        {:design, :reference}

      result == {:ok, [:other]} ->
        {:design, :reference}

      true ->
        failed
    end
  end

  defp excuse(outcome, _result, _wasm, _args, _state), do: outcome

  # What the trap may be. Older scripts say only "out of bounds".
  defp reason("out of bounds"), do: [:memory_out_of_bounds, :table_out_of_bounds]

  defp reason(message) do
    for {prefix, reason} <- @reasons, String.starts_with?(message, prefix), do: reason
  end

  # A NaN other than the one that `:nan` becomes.
  defp payload?({:f32, bits}), do: bits != 0x7FC00000 and float(<<bits::32>>) == :nan
  defp payload?({:f64, bits}), do: bits != 0x7FF8000000000000 and float(<<bits::64>>) == :nan
  defp payload?(_value), do: false

  defp trapped({:ok, results}, _reasons), do: failed("it answers #{inspect(results)}")

  # It came through a function of another instance.
  defp trapped({:error, %ImportError{reason: %Trap{} = trap}}, reasons),
    do: trapped({:error, trap}, reasons)

  defp trapped({:error, error}, reasons) do
    if match?(%Trap{}, error) and error.reason in reasons, do: :ok, else: failed(error)
  end

  ## Values

  defp argument({type, n}) when type in [:i32, :i64], do: n
  defp argument({:f32, bits}), do: float(<<bits::32>>)
  defp argument({:f64, bits}), do: float(<<bits::64>>)
  defp argument({:v128, bytes}), do: bytes
  defp argument({:ref, :null}), do: nil
  defp argument(reference), do: reference

  # As Beamr has it.
  defp float(<<x::float-32>>), do: x
  defp float(<<x::float-64>>), do: x
  defp float(<<0::1, 0xFF, 0::23>>), do: :infinity
  defp float(<<1::1, 0xFF, 0::23>>), do: :neg_infinity
  defp float(<<0::1, 0x7FF::11, 0::52>>), do: :infinity
  defp float(<<1::1, 0x7FF::11, 0::52>>), do: :neg_infinity
  defp float(_nan), do: :nan

  defp compare(results, expected) do
    same? = length(results) == length(expected)

    if same? and Enum.all?(Enum.zip(results, expected), fn {r, e} -> same?(r, e) end),
      do: :ok,
      else: failed("it answers #{inspect(results)} and not #{inspect(expected)}")
  end

  defp same?(value, {:either, expected}), do: Enum.any?(expected, &same?(value, &1))
  defp same?(value, {type, n}) when type in [:i32, :i64], do: value === n
  defp same?(value, {:f32, expected}), do: same_float?(value, expected, 32)
  defp same?(value, {:f64, expected}), do: same_float?(value, expected, 64)
  defp same?(<<_::128>> = bytes, {:v128, lanes}), do: lanes?(bytes, lanes)
  defp same?(value, {:ref, :null}), do: value == nil
  defp same?(value, {:ref, :func}), do: is_reference(value)
  defp same?(value, {:ref, _any}), do: value != nil
  defp same?(value, reference), do: value == reference

  defp same_float?(value, nan, _size) when nan in [:canonical, :arithmetic], do: value == :nan

  defp same_float?(value, bits, size) when is_atom(value),
    do: float(<<bits::size(size)>>) == value

  # What Beamr answers for an f32 is an f32, exactly.
  defp same_float?(value, bits, size) when is_float(value) do
    float(<<value::float-size(size)>>) == value and
      <<value::float-size(size)>> == <<bits::size(size)>>
  end

  defp same_float?(_value, _bits, _size), do: false

  # Lanes lie in memory lowest byte first. Here NaNs have their bits.
  defp lanes?(<<>>, []), do: true

  defp lanes?(bytes, [{type, expected} | lanes]) do
    {lane, bytes} = :erlang.split_binary(bytes, bytes(type))
    lane?(reversed(lane), expected) and lanes?(bytes, lanes)
  end

  defp bytes(:i8), do: 1
  defp bytes(:i16), do: 2
  defp bytes(type) when type in [:i32, :f32], do: 4
  defp bytes(type) when type in [:i64, :f64], do: 8

  defp reversed(bytes),
    do: bytes |> :binary.bin_to_list() |> Enum.reverse() |> :binary.list_to_bin()

  defp lane?(<<_::1, 0xFF, 1::1, payload::22>>, :canonical), do: payload == 0
  defp lane?(<<_::1, 0xFF, 1::1, _::22>>, :arithmetic), do: true
  defp lane?(<<_::1, 0x7FF::11, 1::1, payload::51>>, :canonical), do: payload == 0
  defp lane?(<<_::1, 0x7FF::11, 1::1, _::51>>, :arithmetic), do: true
  defp lane?(_lane, nan) when is_atom(nan), do: false

  defp lane?(lane, n) do
    size = bit_size(lane)
    lane == <<n::size(size)>>
  end

  defp failed(%{__exception__: true} = error), do: failed(Exception.message(error))
  defp failed(text), do: {:failed, text}
end
