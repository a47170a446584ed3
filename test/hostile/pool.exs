defmodule Hostile.Pool do
  @moduledoc false
  # The handles of a round, a few of each kind: what calls answered takes the place of what there
  # was.

  @slots 8

  def new, do: :ets.new(__MODULE__, [:named_table, :public, read_concurrency: true])
  def delete, do: :ets.delete(__MODULE__)

  @doc "One of a kind, or nil."
  def get(kind) do
    case :ets.lookup(__MODULE__, {kind, :rand.uniform(@slots)}) do
      [{_key, term}] -> term
      [] -> nil
    end
  end

  def put(kind, term), do: :ets.insert(__MODULE__, {{kind, :rand.uniform(@slots)}, term})

  @doc "Puts what `make` answers in every place of the kind."
  def fill(kind, make),
    do: for(n <- 1..@slots, do: :ets.insert(__MODULE__, {{kind, n}, make.(n)}))

  @doc "Notes a process that has to end with the round."
  def note(pid), do: :ets.insert(__MODULE__, {{:started, pid}, pid})

  @doc "All of a kind."
  def all(kind), do: :ets.select(__MODULE__, [{{{kind, :_}, :"$1"}, [], [:"$1"]}])

  @doc "Keeps the handles that a call answered."
  def keep(answer) do
    case answer do
      {:ok, term} ->
        keep(term)

      {ref, _step} when is_reference(ref) ->
        put(:raw, ref)

      [ref | _] when is_reference(ref) ->
        put(:funcref, ref)

      %Beamr.Instance{} ->
        put(:instance, answer)

      %Beamr.Module{} ->
        put(:module, answer)

      %Beamr.View{} ->
        put(:view, answer)

      %Beamr.Struct{} ->
        put(:layout, answer)

      %struct{} when struct in [Beamr.Allocator.Bump, Beamr.Allocator.Guest] ->
        put(:allocator, answer)

      %Beamr.Allocator.Stack{} ->
        put(:allocator, answer)

      pid when is_pid(pid) ->
        put(:server, pid)

      ref when is_reference(ref) ->
        put(:funcref, ref)

      _ ->
        true
    end
  end
end
