defmodule Beamr.Import do
  @moduledoc false
  # What is given for imports that are no functions: whether it fits the module, and the form
  # that the native side makes it from.

  alias Beamr.{LinkError, Module, Native}

  @typep import :: {String.t(), String.t(), Module.extern_type()}

  # As many as the engine lets a table of a module's own begin with. They are all written to.
  @most_elements 10_000_000

  @doc """
  The limits of a memory or table, or the value of a global, that was given; or the problem that
  keeps it from being what the module imports. `item` counts the imports that are no functions.
  """
  @spec make(import(), {:ok, term()} | :error, item :: non_neg_integer(), Module.t()) ::
          {:ok, term()} | {:problem, LinkError.problem()}
  def make(import, :error, _item, _module), do: problem(import, :missing, nil)

  def make({_, _, {kind, _}} = import, {:ok, kind}, item, module)
      when kind in [:memory, :table] do
    {minimum, maximum} = own_limits(import, module)
    limits(import, minimum, maximum, kind, item, module)
  end

  def make({_, _, {kind, _}} = import, {:ok, {kind, minimum} = given}, item, module)
      when kind in [:memory, :table] do
    limits(import, minimum, nil, given, item, module)
  end

  def make({_, _, {kind, _}} = import, {:ok, {kind, minimum, maximum} = given}, item, module)
      when kind in [:memory, :table] do
    limits(import, minimum, if(maximum != :infinity, do: maximum), given, item, module)
  end

  def make({_, _, {:global, %{type: type}}} = import, {:ok, :global}, item, module) do
    value(import, zero(type), :global, item, module)
  end

  def make({_, _, {:global, _}} = import, {:ok, {:global, value} = given}, item, module) do
    value(import, value, given, item, module)
  end

  def make(import, {:ok, given}, _item, _module), do: problem(import, :type, given)

  @doc "An import that is not satisfied."
  @spec problem(import(), atom(), term(), map()) :: {:problem, LinkError.problem()}
  def problem({module, name, wanted}, problem, given, more \\ %{}) do
    import = %{module: module, name: name, problem: problem, wanted: wanted, given: given}
    {:problem, Map.merge(import, more)}
  end

  # A name that is imported more than once is one thing, and has to satisfy each import.
  defp own_limits({module, name, {kind, _}}, compiled) do
    types = for {^module, ^name, {^kind, type}} <- Module.imports(compiled), do: type
    # Any number is less than nil.
    {types |> Enum.map(& &1.minimum) |> Enum.max(), types |> Enum.map(& &1.maximum) |> Enum.min()}
  end

  defp limits({_, _, {_, type}} = import, minimum, maximum, given, item, module)
       when is_integer(minimum) and minimum >= 0 and
              (is_nil(maximum) or (is_integer(maximum) and maximum >= minimum)) do
    most = type.maximum || most(import)
    largest = maximum || minimum

    cond do
      minimum < type.minimum ->
        problem(import, :too_small, given, %{required: type.minimum, provided: minimum})

      largest > most ->
        problem(import, :too_large, given, %{required: most, provided: largest})

      table?(import) and minimum > @most_elements ->
        problem(import, :too_large, given, %{required: @most_elements, provided: minimum})

      type.maximum && !maximum ->
        problem(import, :no_maximum, given, %{required: most, provided: nil})

      # A table whose elements cannot be null has none to begin with.
      table?(import) and not fits?(nil, item, module) ->
        problem(import, :type, given)

      true ->
        {:ok, {minimum, maximum}}
    end
  end

  defp limits(import, _minimum, _maximum, given, _item, _module) do
    problem(import, :type, given)
  end

  defp table?({_, _, {kind, _}}), do: kind == :table

  # What the index type can address.
  defp most({_, _, {:memory, %{index_type: :i32, page_size: size}}}), do: div(2 ** 32, size)
  defp most({_, _, {:memory, %{page_size: 1}}}), do: 2 ** 64 - 1
  defp most({_, _, {:memory, %{page_size: size}}}), do: div(2 ** 64, size)
  defp most({_, _, {:table, %{index_type: :i32}}}), do: 2 ** 32 - 1
  defp most({_, _, {:table, _}}), do: 2 ** 64 - 1

  defp value(import, value, given, item, module) do
    if fits?(value, item, module), do: {:ok, value}, else: problem(import, :value, given)
  end

  defp fits?(value, item, module), do: Native.import_check(module.ref, item, value) == :ok

  defp zero(type) when type in [:i32, :i64], do: 0
  defp zero(type) when type in [:f32, :f64], do: 0.0
  defp zero(:v128), do: <<0::128>>
  defp zero(_reference), do: nil
end
