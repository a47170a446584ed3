defmodule Beamr.Import do
  @moduledoc false
  # What is given for imports that are no functions: whether it fits the module, and the form
  # that the native side makes it from.

  alias Beamr.{LinkError, Module, Native}

  @typep import :: {String.t(), String.t(), Module.extern_type()}

  @doc """
  The limits of a memory or table, or the value of a global, that `given` asks for; or the
  problem that keeps it from being what the module imports.
  """
  @spec make(import(), term(), Module.t()) :: {:ok, term()} | {:error, LinkError.problem()}
  def make({_, _, {kind, _}} = import, kind, module) when kind in [:memory, :table] do
    {minimum, maximum} = own_limits(import, module)
    limits(import, minimum, maximum, kind, module)
  end

  def make({_, _, {kind, _}} = import, {kind, minimum} = given, module)
      when kind in [:memory, :table] do
    limits(import, minimum, nil, given, module)
  end

  def make({_, _, {kind, _}} = import, {kind, minimum, maximum} = given, module)
      when kind in [:memory, :table] do
    limits(import, minimum, if(maximum != :infinity, do: maximum), given, module)
  end

  def make({_, _, {:global, %{type: type}}} = import, :global, module) do
    value(import, zero(type), :global, module)
  end

  def make({_, _, {:global, _}} = import, {:global, value} = given, module) do
    value(import, value, given, module)
  end

  def make(import, given, _module), do: {:error, problem(import, :type, given)}

  @doc "One import that is not satisfied."
  @spec problem(import(), atom(), term()) :: LinkError.problem()
  def problem({module, name, wanted}, problem, given) do
    %{module: module, name: name, problem: problem, wanted: wanted, given: given}
  end

  # A name that is imported more than once is one thing, and has to satisfy each import.
  defp own_limits({module, name, {kind, _}}, compiled) do
    types = for {^module, ^name, {^kind, type}} <- Module.imports(compiled), do: type
    # Any number is less than nil.
    {types |> Enum.map(& &1.minimum) |> Enum.max(), types |> Enum.map(& &1.maximum) |> Enum.min()}
  end

  defp limits({_, _, {_, type}} = import, minimum, maximum, given, module)
       when is_integer(minimum) and minimum >= 0 and
              (is_nil(maximum) or (is_integer(maximum) and maximum >= minimum)) do
    most = type.maximum || most(import)

    cond do
      minimum < type.minimum ->
        out_of_limits(import, :too_small, given, type.minimum, minimum)

      (maximum || minimum) > most ->
        out_of_limits(import, :too_large, given, most, maximum || minimum)

      type.maximum && !maximum ->
        out_of_limits(import, :no_maximum, given, most, nil)

      true ->
        elements(import, {minimum, maximum}, given, module)
    end
  end

  defp limits(import, _minimum, _maximum, given, _module) do
    {:error, problem(import, :type, given)}
  end

  # What the index type can address.
  defp most({_, _, {:memory, %{index_type: :i32, page_size: size}}}), do: div(2 ** 32, size)
  defp most({_, _, {:memory, %{page_size: 1}}}), do: 2 ** 64 - 1
  defp most({_, _, {:memory, %{page_size: size}}}), do: div(2 ** 64, size)
  defp most({_, _, {:table, %{index_type: :i32}}}), do: 2 ** 32 - 1
  defp most({_, _, {:table, _}}), do: 2 ** 64 - 1

  defp out_of_limits(import, problem, given, required, provided) do
    {:error,
     import |> problem(problem, given) |> Map.merge(%{required: required, provided: provided})}
  end

  # A table of elements that cannot be null has none to begin with.
  defp elements({_, _, {:table, _}} = import, limits, given, module) do
    if fits?(import, nil, module),
      do: {:ok, limits},
      else: {:error, problem(import, :type, given)}
  end

  defp elements(_import, limits, _given, _module), do: {:ok, limits}

  defp value(import, value, given, module) do
    if fits?(import, value, module),
      do: {:ok, value},
      else: {:error, problem(import, :value, given)}
  end

  # Types that look the same here need not be the same, so each import of the name is asked.
  defp fits?(import, value, module) do
    imports = Enum.with_index(Module.imports(module))
    indices = for {^import, index} <- imports, do: index
    Enum.all?(indices, &(Native.import_check(module.ref, &1, value) == :ok))
  end

  defp zero(type) when type in [:i32, :i64], do: 0
  defp zero(type) when type in [:f32, :f64], do: 0.0
  defp zero(:v128), do: <<0::128>>
  defp zero(_reference), do: nil
end
