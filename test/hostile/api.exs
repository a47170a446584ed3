defmodule Hostile.Api do
  @moduledoc false
  # What can be called: every documented function of every public module, and all NIFs; and the
  # types of their arguments, by their specs.

  # `load` loads the library anew. Mix tasks end the VM by design.
  @apart [{Beamr.Native, :load}]

  def load do
    functions = public() ++ all_nifs()
    specs = for {module, _} <- functions, uniq: true, do: {module, specs(module)}
    specs = Map.new(specs)

    types =
      for module <- all_modules(),
          {name, type} <- types(module),
          into: %{},
          do: {{module, name}, type}

    :persistent_term.put({__MODULE__, :types}, types)

    calls =
      for {module, {name, arity}} <- functions, {module, name} not in @apart do
        %{
          module: module,
          name: name,
          arity: arity,
          types: specs[module][{name, arity}] || [],
          options: []
        }
      end

    calls = Enum.map(calls, &%{&1 | options: known_options(&1)})

    :persistent_term.put(
      {__MODULE__, :calls},
      List.to_tuple(Enum.filter(calls, &(&1.module != Beamr.Native)))
    )

    :persistent_term.put(
      {__MODULE__, :nifs},
      List.to_tuple(Enum.filter(calls, &(&1.module == Beamr.Native)))
    )

    calls
  end

  def calls, do: :persistent_term.get({__MODULE__, :calls})
  def nifs, do: :persistent_term.get({__MODULE__, :nifs})

  @doc "What a type of a module stands for, or nil."
  def type(module, name), do: Map.get(:persistent_term.get({__MODULE__, :types}), {module, name})

  defp all_modules, do: Application.spec(:beamr, :modules)

  defp public do
    for module <- Enum.sort(all_modules()),
        {:module, _} = Code.ensure_loaded(module),
        {:docs_v1, _, _, _, moduledoc, _, docs} <- [Code.fetch_docs(module)],
        moduledoc != :hidden,
        not function_exported?(module, :__impl__, 1),
        not function_exported?(module, :run, 1) or
          not String.starts_with?("#{module}", "Elixir.Mix."),
        {{:function, name, most}, _, _, doc, metadata} <- docs,
        doc != :hidden,
        arity <- (most - Map.get(metadata, :defaults, 0))..most,
        do: {module, {name, arity}}
  end

  defp all_nifs do
    for {name, arity} <- Enum.sort(Beamr.Native.module_info(:exports)),
        name not in [:__info__, :module_info],
        do: {Beamr.Native, {name, arity}}
  end

  defp types(module) do
    case Code.Typespec.fetch_types(module) do
      {:ok, types} -> for {_kind, {name, type, []}} <- types, do: {name, type}
      :error -> []
    end
  end

  defp specs(module) do
    {:ok, specs} = Code.Typespec.fetch_specs(module)

    for {{name, arity}, [spec | _]} <- specs,
        fewer <- arity..max(arity - 3, 0),
        reduce: %{} do
      # Calls with fewer arguments leave out the last.
      specs -> Map.put_new(specs, {name, fewer}, spec |> arguments() |> Enum.take(fewer))
    end
    |> Map.merge(for {function, [spec | _]} <- specs, into: %{}, do: {function, arguments(spec)})
  end

  defp arguments({:type, _, :bounded_fun, [function, _constraints]}), do: arguments(function)
  defp arguments({:type, _, :fun, [{:type, _, :product, arguments}, _result]}), do: arguments

  # A function that takes options tells which when it is given another.
  @guesses [:memory, :timeout, :scheduler, :unsigned, :as, :wrap, :invalid, :follow, :fuel]
  defp known_options(%{module: Beamr.Native}), do: []

  defp known_options(%{module: Beamr.Server}), do: server_options()
  defp known_options(%{module: Beamr, name: :start_link}), do: server_options()
  defp known_options(%{module: :beamr, name: :start_link}), do: server_options()
  defp known_options(%{module: :beamr, name: :child_spec}), do: server_options()

  defp known_options(%{module: module, name: name, arity: arity} = call) do
    last = List.last(call.types)

    asked =
      if arity > 0 and last != nil do
        args = for type <- Enum.drop(call.types, -1), do: harmless(type)

        try do
          apply(module, name, args ++ [[hostile: 1]])
          []
        rescue
          error in ArgumentError -> allowed(Exception.message(error))
          _ -> []
        catch
          _, _ -> []
        end
      end

    if asked in [nil, []], do: @guesses, else: asked
  end

  defp server_options do
    [:module, :imports, :wasi, :hosts, :stubs, :timeout, :scheduler, :max_depth, :max_memory] ++
      [:max_table_elements, :init, :on_trap, :name]
  end

  defp harmless(type) do
    case type do
      {:remote_type, _, [{:atom, _, Beamr}, {:atom, _, :guest}, _]} -> Hostile.Pool.get(:instance)
      {:remote_type, _, [_, {:atom, _, :layout}, _]} -> Hostile.Pool.get(:layout)
      {:user_type, _, :layout, _} -> Hostile.Pool.get(:layout)
      {:user_type, _, :guest, _} -> Hostile.Pool.get(:instance)
      {:user_type, _, :t, _} -> Hostile.Pool.get(:allocator)
      {:remote_type, _, [{:atom, _, String}, _, _]} -> "memory"
      {:type, _, :union, [first | _]} -> harmless(first)
      {:remote_type, _, [{:atom, _, Beamr.Module}, _, _]} -> Hostile.Pool.get(:module)
      {:type, _, :list, _} -> []
      {:type, _, :binary, _} -> "(module)"
      {:type, _, :map, _} -> %{}
      {:user_type, _, :type, _} -> :i32
      {:remote_type, _, [{:atom, _, Beamr.IO}, _, _]} -> :i32
      _ -> 0
    end
  end

  defp allowed(message) do
    case Regex.run(~r/allowed keys are: \[(.*)\]/, message) do
      [_, keys] -> for ":" <> key <- String.split(keys, ", "), do: String.to_atom(key)
      nil -> []
    end
  end
end
