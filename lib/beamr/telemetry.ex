defmodule Beamr.Telemetry do
  @moduledoc """
  Events for the `:telemetry` library, emitted when the application has it. Beamr does not
  depend on it; whether it is there is found out when Beamr starts (or by `detect/0`).

  | event | measurements | metadata |
  |---|---|---|
  | `[:beamr, :compile, :start]` | `system_time` | `size` |
  | `[:beamr, :compile, :stop]` | `duration` | `size`, `error` |
  | `[:beamr, :instantiate, :start]` | `system_time` | `module` |
  | `[:beamr, :instantiate, :stop]` | `duration` | `module`, `error` |
  | `[:beamr, :call, :start]` | `system_time` | `module`, `function` |
  | `[:beamr, :call, :stop]` | `duration` | `module`, `function`, `error` |
  | `[:beamr, :memory, :grow]` | `size`, `added` | `module`, `function` |

  Each `:stop` has an `:exception` beside it with the same measurements and `kind`, `reason` and
  `stacktrace` besides `error`, for what raised instead of answering.

  `system_time` and `duration` are in native time units; `size` is bytes (of the source, of the
  memory after growth) and `added` the bytes that the call, with the calls nested in it, has
  added to the default memory;
  `module` is the name that the module gives itself, or nil; `function` is the name or handle
  that was called; `error` is the exception that was answered, or nil.

  Events are emitted in the process that runs the guest.
  """

  # An atom is looked up quickest, and this is in every call.
  @key :"$beamr_telemetry"

  @doc """
  Finds out again whether `:telemetry` is there; answers whether it is.

      iex> is_boolean(Beamr.Telemetry.detect())
      true
  """
  @spec detect() :: boolean()
  def detect do
    present = Code.ensure_loaded?(:telemetry)
    :persistent_term.put(@key, present)
    present
  end

  @doc false
  @spec on?() :: boolean()
  def on?, do: :persistent_term.get(@key, false)

  @doc false
  # Runs a function between two events; what it answers is an ok or error tuple.
  @spec span(atom(), map(), (() -> result)) :: result when result: term()
  def span(name, metadata, function) do
    start = System.monotonic_time()
    execute([:beamr, name, :start], %{system_time: System.system_time()}, metadata)

    try do
      function.()
    catch
      kind, reason ->
        failed =
          Map.merge(metadata, %{
            error: nil,
            kind: kind,
            reason: reason,
            stacktrace: __STACKTRACE__
          })

        execute([:beamr, name, :exception], duration(start), failed)
        :erlang.raise(kind, reason, __STACKTRACE__)
    else
      result ->
        execute([:beamr, name, :stop], duration(start), Map.put(metadata, :error, error(result)))
        result
    end
  end

  @doc false
  # As `span/3` for a call, which may also grow the memory that `size` tells of.
  @spec call_span(map(), (() -> {:ok, integer()} | {:error, term()}), (() -> result)) :: result
        when result: term()
  def call_span(metadata, size, function) do
    before = size.()
    result = span(:call, metadata, function)

    with {:ok, old} <- before, {:ok, new} when new > old <- size.() do
      execute([:beamr, :memory, :grow], %{size: new, added: new - old}, metadata)
    end

    result
  end

  defp error({:error, error}), do: error
  defp error(_result), do: nil

  defp duration(start), do: %{duration: System.monotonic_time() - start}

  # Not a dependency, so not known when this is compiled.
  defp execute(event, measurements, metadata) do
    apply(:telemetry, :execute, [event, measurements, metadata])
  end
end
