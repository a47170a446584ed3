defmodule Beamr.Allocator.Regions do
  @moduledoc false
  # Which allocators there are for which instance, and which bytes are whose. An instance is
  # known by the text of its reference, because the reference itself would keep it alive.

  use GenServer

  alias Beamr.{AllocatorError, Native}

  @table __MODULE__

  @type key :: charlist()

  @doc "What an instance is known by."
  @spec key(reference()) :: key()
  def key(ref), do: :erlang.ref_to_list(ref)

  @doc """
  The name under which regions of a memory are compared: nil for a default memory that is not
  named `"memory"`, which may be any.
  """
  @spec memory(reference(), String.t() | nil) :: String.t() | nil
  def memory(ref, nil) do
    if Native.memory_size(ref, "memory") == {:error, :unknown_memory}, do: nil, else: "memory"
  end

  def memory(_ref, name), do: name

  @doc "Takes a region for the calling process, until that ends."
  @spec claim(key(), String.t() | nil, tuple() | nil, atom(), pid()) ::
          :ok | {:error, AllocatorError.t()}
  def claim(key, memory, region, kind, owner) do
    GenServer.call(@table, {:claim, key, memory, region, kind, owner}, :infinity)
  end

  @doc "Ends the allocators of an instance that is gone."
  @spec guest_gone(reference()) :: :ok
  def guest_gone(ref) do
    # Without the application there is no table.
    if :ets.info(@table, :size) not in [0, :undefined] do
      for row <- :ets.lookup(@table, key(ref)), do: Beamr.Allocator.Book.close(elem(row, 1))
    end

    :ok
  end

  @spec start_link(term()) :: GenServer.on_start()
  def start_link(_args), do: GenServer.start_link(__MODULE__, nil, name: @table)

  @impl true
  def init(nil) do
    :ets.new(@table, [:bag, :named_table, :protected, read_concurrency: true])
    {:ok, %{}}
  end

  @impl true
  def handle_call({:claim, key, memory, region, kind, owner}, {pid, _tag}, keys) do
    other = Enum.find(:ets.lookup(@table, key), &in_the_way?(&1, memory, region))

    if other do
      {:reply, {:error, overlap(region, other)}, keys}
    else
      Process.monitor(pid)
      :ets.insert(@table, {key, pid, memory, region, kind, owner})
      {:reply, :ok, Map.put(keys, pid, key)}
    end
  end

  @impl true
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, keys) do
    {key, keys} = Map.pop!(keys, pid)
    :ets.match_delete(@table, {key, pid, :_, :_, :_, :_})
    {:noreply, keys}
  end

  # An allocator whose owner is dead is about to end: who takes that owner's place, under a
  # supervisor say, need not wait for it.
  defp in_the_way?({_key, pid, memory, region, _kind, owner}, wanted_memory, wanted) do
    (memory == wanted_memory or memory == nil or wanted_memory == nil) and
      overlap?(region, wanted) and Process.alive?(pid) and alive?(owner)
  end

  defp alive?(owner), do: node(owner) != node() or Process.alive?(owner)

  defp overlap?(nil, _b), do: false
  defp overlap?(_a, nil), do: false

  # Atoms are greater than all numbers, and so is :infinity.
  defp overlap?({a, a_limit}, {b, b_limit}), do: a < b_limit and b < a_limit

  defp overlap({base, limit}, {_key, _pid, _memory, {other_base, other_limit}, kind, owner}) do
    other = %{kind: kind, base: other_base, limit: other_limit, owner: owner}
    %AllocatorError{reason: :overlap, base: base, limit: limit, other: other}
  end
end
