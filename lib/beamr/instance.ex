defmodule Beamr.Instance do
  @moduledoc """
  One module's live state: its memories, globals and tables.

  An instance is a handle that any process of the node may use, as with an ETS table or an open
  file. It is made by `Beamr.instantiate/2`. It lives until `Beamr.close/1`, or until nothing
  refers to it any more; it does not die with the process that made it.

  One call runs at a time. A process that calls a busy instance waits for its turn, first come,
  first served; memory can be read and written meanwhile.
  """

  alias Beamr.{Error, ImportError, LinkError, Module, Native}

  @enforce_keys [:ref, :module, :imports]
  defstruct [:ref, :module, :imports]

  @typedoc "An instance. Its fields are private."
  @opaque t :: %__MODULE__{ref: reference(), module: Module.t(), imports: tuple()}

  @typedoc """
  Imports by module and name. Each function takes the instance first and then the guest's
  arguments, and runs in the process that made the call. An import with no results may return
  anything, one with one result returns it, one with several returns a list of them.
  """
  @type imports :: %{optional(String.t()) => %{optional(String.t()) => function()}}

  @typep timeout_ms :: timeout()

  @doc false
  @spec new(Module.t(), imports(), timeout_ms(), pos_integer()) ::
          {:ok, t()} | {:error, Exception.t()}
  def new(%Module{} = module, imports, timeout, max_depth) do
    with {:ok, functions} <- link(module, imports) do
      {ref, step} = Native.instance_start(module.ref, milliseconds(timeout), max_depth)
      instance = %__MODULE__{ref: ref, module: module, imports: functions}

      case drive(step, instance) do
        {:ok, []} -> {:ok, instance}
        {:error, reason} -> {:error, Error.call(reason, nil, [])}
      end
    end
  end

  # The functions of the imports, by the import's index; or every import that does not fit.
  defp link(module, imports) do
    linked = Enum.map(Module.imports(module), &link_one(&1, imports))

    case for({:problem, problem} <- linked, do: problem) do
      [] -> {:ok, List.to_tuple(linked)}
      problems -> {:error, %LinkError{imports: problems}}
    end
  end

  defp link_one({module, name, type}, imports) do
    given = given(imports, module, name)

    case {type, given} do
      {{:function, %{params: params}}, {:ok, function}}
      when is_function(function, length(params) + 1) ->
        {module, name, function}

      {_type, {:ok, value}} ->
        {:problem, %{module: module, name: name, problem: :type, wanted: type, given: value}}

      {_type, :error} ->
        {:problem, %{module: module, name: name, problem: :missing, wanted: type, given: nil}}
    end
  end

  defp given(imports, module, name) do
    case imports do
      %{^module => %{^name => value}} -> {:ok, value}
      _ -> :error
    end
  end

  @doc false
  # `unsigned` makes integer results unsigned: pointers are.
  @spec call(t(), String.t() | Beamr.funcref(), [term()], timeout_ms(), boolean()) ::
          {:ok, [term()]} | {:error, Exception.t()}
  def call(%__MODULE__{} = instance, function, args, timeout, unsigned) do
    case start(instance, function, args, milliseconds(timeout), unsigned) do
      {:ok, _results} = ok ->
        ok

      step ->
        case drive(step, instance) do
          {:ok, _results} = ok -> ok
          {:error, reason} -> {:error, Error.call(reason, function, args)}
        end
    end
  end

  defp milliseconds(:infinity), do: -1
  defp milliseconds(timeout), do: timeout

  defp start(%{ref: ref} = instance, function, args, timeout, unsigned) do
    case Native.call_start(ref, function, args, timeout, unsigned) do
      :dirty ->
        ref
        |> Native.call_start_dirty(function, args, timeout, unsigned)
        |> await_turn(instance, function, args, timeout, unsigned)

      {:queue, _turn} = step ->
        await_turn(step, instance, function, args, timeout, unsigned)

      step ->
        step
    end
  end

  # The instance is busy with another process's call: wait until it calls this process up.
  defp await_turn({:queue, turn}, instance, function, args, timeout, unsigned) do
    started = System.monotonic_time(:millisecond)

    receive do
      {:beamr_turn, ^turn} ->
        waited = System.monotonic_time(:millisecond) - started
        start(instance, function, args, remaining(timeout, waited), unsigned)
    after
      receive_timeout(timeout) ->
        Native.instance_leave(instance.ref)

        receive do
          {:beamr_turn, ^turn} -> :ok
        after
          0 -> :ok
        end

        {:error, :timeout}
    end
  end

  defp await_turn(step, _instance, _function, _args, _timeout, _unsigned), do: step

  defp remaining(-1, _waited), do: -1
  defp remaining(timeout, waited), do: max(timeout - waited, 0)

  defp receive_timeout(-1), do: :infinity
  # The longest time that `receive` takes; a call is given up after 49 days at the latest.
  defp receive_timeout(timeout), do: min(timeout, 0xFFFFFFFF)

  # Runs a call step by step to its end. Everything that can run guest code ends up here.
  defp drive({:ok, _results} = ok, _instance), do: ok
  defp drive({:error, _reason} = error, _instance), do: error

  defp drive(:yield, instance) do
    instance.ref |> Native.call_resume_dirty(:continue, nil) |> drive(instance)
  end

  defp drive({:import, index, args}, instance) do
    {module, name, function} = elem(instance.imports, index)

    case run_import(function, [instance | args]) do
      {:return, value} ->
        case resume(instance.ref, :return, value) do
          {:error, :import_result} -> {:error, bad_result(instance, index, value)}
          step -> drive(step, instance)
        end

      {:raise, kind, reason, stacktrace} ->
        case resume(instance.ref, :raise, nil) do
          {:error, :raised} ->
            {:error,
             %ImportError{
               module: module,
               name: name,
               kind: kind,
               reason: reason,
               stacktrace: stacktrace
             }}

          step ->
            drive(step, instance)
        end
    end
  end

  defp run_import(function, args) do
    {:return, apply(function, args)}
  catch
    kind, reason -> {:raise, kind, reason, __STACKTRACE__}
  end

  defp resume(ref, answer, value) do
    case Native.call_resume(ref, answer, value) do
      :dirty -> Native.call_resume_dirty(ref, answer, value)
      step -> step
    end
  end

  defp bad_result(instance, index, value) do
    {module, name, {:function, %{results: results}}} =
      instance.module |> Module.imports() |> Enum.at(index)

    %ImportError{
      module: module,
      name: name,
      kind: :result,
      reason: :bad_result,
      wanted: results,
      given: value
    }
  end

  defimpl Inspect do
    def inspect(%{module: module}, _opts) do
      case Beamr.Module.name(module) do
        nil -> "#Beamr.Instance<>"
        name -> "#Beamr.Instance<#{name}>"
      end
    end
  end
end
