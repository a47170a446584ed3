defmodule Beamr.Allocator.Book do
  @moduledoc false
  # The process of one allocator: what is allocated where. It never touches the guest, and so
  # waits for nobody: whoever allocates says how far memory reaches, and grows it himself where
  # this process tells him to.

  use GenServer, restart: :temporary

  alias Beamr.Allocator.{Books, Regions}
  alias Beamr.{AllocatorError, Guest, Instance}

  @timeout 5_000
  @page 0x10000

  ## Callers

  @doc "Starts the process on the guest's node; answers it, and the guest that it stands by."
  @spec open(
          Beamr.guest(),
          atom(),
          {non_neg_integer(), non_neg_integer() | :infinity} | nil,
          boolean(),
          keyword()
        ) :: {:ok, pid(), Beamr.guest()} | {:error, Exception.t()}
  def open(guest, kind, region, records, opts) do
    opts = Keyword.take(opts, [:memory, :owner])
    owner = opts[:owner] || self()
    check!(:owner, owner, is_pid(owner))
    opts = Keyword.put(opts, :owner, owner)

    case Guest.place(guest, {__MODULE__, :open, [guest, kind, region, records, opts]}) do
      {:instance, ref} ->
        start(server(guest), ref, kind, region, records, opts)

      {:remote, node, guest} ->
        Guest.remote(node, __MODULE__, :open, [guest, kind, region, records, opts])
    end
  end

  # A name may come to mean another server.
  defp server(%Instance{} = instance), do: instance
  defp server(guest), do: GenServer.whereis(guest)

  defp start(guest, ref, kind, region, records, opts) do
    server = if is_pid(guest), do: guest

    args =
      {Regions.key(ref), Regions.memory(ref, opts[:memory]), server, kind, region, records,
       opts[:owner]}

    case DynamicSupervisor.start_child(Books, {__MODULE__, args}) do
      {:ok, pid} ->
        # An instance that is closed by now has not told the process.
        case Beamr.IO.size(guest, Keyword.take(opts, [:memory])) do
          {:ok, _bytes} ->
            {:ok, pid, guest}

          error ->
            close(pid)
            error
        end

      {:error, {:shutdown, %AllocatorError{} = error}} ->
        {:error, error}
    end
  end

  @spec request(pid(), term()) :: term()
  def request(pid, request) do
    GenServer.call(pid, request, @timeout)
  catch
    :exit, {:timeout, {GenServer, :call, _args}} ->
      leave(pid)
      {:error, %AllocatorError{reason: :timeout}}

    :exit, {reason, {GenServer, :call, _args}}
    when reason in [:noproc, :normal, :shutdown, :killed] ->
      {:error, %AllocatorError{reason: :closed}}
  end

  @doc "Gives up a turn to grow memory, or the wait for it."
  @spec leave(pid()) :: :ok
  def leave(pid), do: GenServer.cast(pid, {:leave, self()})

  @spec close(pid()) :: :ok
  def close(pid) do
    GenServer.stop(pid, :normal, @timeout)
  catch
    :exit, _reason -> :ok
  end

  @doc """
  Grows memory by the pages that are missing to `needed` bytes; answers its bytes then, and how
  often it was grown.
  """
  @spec cover(Beamr.guest(), String.t() | nil, non_neg_integer()) ::
          {:ok, non_neg_integer(), non_neg_integer()} | {:error, Exception.t()}
  def cover(guest, memory, needed), do: cover(guest, [memory: memory], needed, @page, 0)

  defp cover(guest, opts, needed, page, grown) do
    with {:ok, bytes} when bytes < needed <- Beamr.IO.size(guest, opts),
         missing = div(needed + page - 1, page) - div(bytes, page),
         {:ok, _before} <- Beamr.IO.grow(guest, missing, opts) do
      # Where that was not enough, a page is one byte.
      cover(guest, opts, needed, 1, grown + 1)
    else
      {:ok, bytes} -> {:ok, bytes, grown}
      error -> error
    end
  end

  @doc "Refuses an option's value that is none."
  @spec check!(atom(), term(), boolean()) :: :ok
  def check!(_name, _value, true), do: :ok

  def check!(name, value, false) do
    raise ArgumentError, "#{inspect(name)} cannot be #{inspect(value)}"
  end

  ## The process

  @spec start_link(tuple()) :: GenServer.on_start()
  def start_link(args), do: GenServer.start_link(__MODULE__, args)

  defstruct [
    :kind,
    :base,
    :limit,
    :top,
    :records,
    # Who grows memory (his pid and our monitor of it), and the requests that wait for him.
    :grower,
    waiting: :queue.new(),
    marks: [],
    made: 0,
    allocated: 0,
    active: 0,
    # The bytes that malloc has handed out.
    held: 0,
    peak: 0,
    growths: 0
  ]

  @impl true
  def init({key, memory, server, kind, region, records, owner}) do
    with :ok <- Regions.claim(key, memory, region, kind, owner) do
      Process.monitor(owner)
      if server, do: Process.monitor(server)
      {base, limit} = region || {nil, nil}
      records = if records, do: :ets.new(__MODULE__, [:ordered_set, :private])
      {:ok, %__MODULE__{kind: kind, base: base, limit: limit, top: base, records: records}}
    else
      {:error, error} -> {:stop, {:shutdown, error}}
    end
  end

  @impl true
  def handle_call({:alloc, _, _, _, _, _} = request, from, book) do
    book |> alloc(request, from) |> noreply()
  end

  def handle_call({:record, pointer, size, tag, block}, _from, book) do
    book = put(book, pointer, size, tag, block)
    held = book.held + size
    {:reply, :ok, %{book | held: held, peak: max(book.peak, held)}}
  end

  def handle_call({:forget, pointer}, _from, book) do
    case :ets.take(book.records, pointer) do
      [{^pointer, _place, size, _time, _tag, block}] ->
        {:reply, {:ok, block}, %{book | active: book.active - 1, held: book.held - size}}

      [] ->
        {:reply, unknown(pointer), book}
    end
  end

  def handle_call(:forget_all, _from, book) do
    blocks = :ets.select(book.records, [{{:_, :_, :_, :_, :_, :"$1"}, [], [:"$1"]}])
    {:reply, {:ok, blocks}, reset(book)}
  end

  def handle_call({:free, pointer}, _from, book) do
    case :ets.lookup(book.records, pointer) do
      [{^pointer, place, size, time, tag, below}] when place != :free ->
        :ets.insert(book.records, {pointer, :free, size, time, tag, below})
        {:reply, :ok, give_back(%{book | active: book.active - 1})}

      _ ->
        {:reply, unknown(pointer), book}
    end
  end

  def handle_call(:mark, _from, book), do: {:reply, :ok, %{book | marks: [book.top | book.marks]}}

  def handle_call(:pop, _from, %{marks: []} = book) do
    {:reply, {:error, %AllocatorError{reason: :no_mark}}, book}
  end

  def handle_call(:pop, _from, %{marks: [mark | marks]} = book) do
    {:reply, :ok, give_back(cut(%{book | marks: marks}, mark))}
  end

  def handle_call(:reset, _from, book), do: {:reply, :ok, reset(book)}
  def handle_call({:grown, times}, _from, book), do: {:reply, :ok, %{book | growths: times}}

  def handle_call(:stats, _from, book) do
    stats = Map.take(book, [:allocated, :active, :peak, :growths])
    {:reply, {:ok, Map.put(stats, :offset, book.top)}, book}
  end

  def handle_call(:allocations, _from, %{records: nil} = book), do: {:reply, {:ok, []}, book}

  def handle_call(:allocations, _from, book) do
    allocations =
      for record <- book.records |> :ets.tab2list() |> List.keysort(1),
          elem(record, 1) != :free,
          do: allocation(record)

    {:reply, {:ok, allocations}, book}
  end

  def handle_call({:lookup, _pointer}, _from, %{records: nil} = book) do
    {:reply, {:ok, nil}, book}
  end

  def handle_call({:lookup, pointer}, _from, book) do
    case :ets.lookup(book.records, pointer) do
      [record] when elem(record, 1) != :free -> {:reply, {:ok, allocation(record)}, book}
      _ -> {:reply, {:ok, nil}, book}
    end
  end

  @impl true
  def handle_cast({:leave, pid}, %{grower: {pid, _monitor}} = book) do
    book |> next_grower() |> noreply()
  end

  def handle_cast({:leave, pid}, book) do
    waiting = :queue.filter(fn {_request, {waiting, _tag}} -> waiting != pid end, book.waiting)
    {:noreply, %{book | waiting: waiting}}
  end

  @impl true
  def handle_info({:DOWN, monitor, :process, _pid, _reason}, %{grower: {_, monitor}} = book) do
    book |> next_grower() |> noreply()
  end

  # The owner, or the server whose guest it is.
  def handle_info({:DOWN, _monitor, :process, _pid, _reason}, book), do: {:stop, :normal, book}
  def handle_info(_message, book), do: {:noreply, book}

  defp noreply(book), do: {:noreply, book}

  ## Allocating

  defp alloc(book, {:alloc, size, alignment, tag, bytes, grown} = request, from) do
    book = %{book | growths: book.growths + grown}
    pointer = div(book.top + alignment - 1, alignment) * alignment
    top = pointer + size

    cond do
      book.limit != :infinity and top > book.limit ->
        error = %AllocatorError{
          reason: :overflow,
          size: size,
          needed: top - book.top,
          available: book.limit - book.top,
          base: book.base
        }

        GenServer.reply(from, {:error, error})
        done_growing(book, from)

      top <= bytes ->
        below = book.top

        book =
          put(
            %{book | top: top, peak: max(book.peak, top - book.base)},
            pointer,
            size,
            tag,
            below
          )

        GenServer.reply(from, {:ok, pointer})
        done_growing(book, from)

      true ->
        # What it has grown is counted by now.
        await_growth(book, put_elem(request, 5, 0), from, top)
    end
  end

  defp await_growth(%{grower: nil} = book, _request, {pid, _tag} = from, top) do
    GenServer.reply(from, {:grow, top})
    %{book | grower: {pid, Process.monitor(pid)}}
  end

  defp await_growth(%{grower: {pid, _monitor}} = book, _request, {pid, _tag} = from, top) do
    GenServer.reply(from, {:grow, top})
    book
  end

  defp await_growth(book, request, from, _top) do
    %{book | waiting: :queue.in({request, from}, book.waiting)}
  end

  defp done_growing(%{grower: {pid, _monitor}} = book, {pid, _tag}), do: next_grower(book)
  defp done_growing(book, _from), do: book

  defp next_grower(%{grower: {_pid, monitor}} = book) do
    Process.demonitor(monitor, [:flush])
    next_waiting(%{book | grower: nil})
  end

  defp next_waiting(%{grower: nil} = book) do
    case :queue.out(book.waiting) do
      {{:value, {request, from}}, waiting} ->
        next_waiting(alloc(%{book | waiting: waiting}, request, from))

      {:empty, _waiting} ->
        book
    end
  end

  defp next_waiting(book), do: book

  ## Records

  # `extra` is the block that malloc answered, or the top before the allocation.
  defp put(book, pointer, size, tag, extra) do
    if book.records do
      time = System.system_time(:microsecond)
      :ets.insert(book.records, {pointer, book.made, size, time, tag, extra})
    end

    %{
      book
      | made: book.made + 1,
        allocated: book.allocated + size,
        active: book.active + 1
    }
  end

  defp allocation({pointer, _place, size, time, tag, _extra}) do
    %{pointer: pointer, size: size, time: time, tag: tag}
  end

  defp unknown(pointer) do
    {:error, %AllocatorError{reason: :unknown_pointer, pointer: pointer}}
  end

  # Takes what is free off the top of a stack.
  defp give_back(book) do
    with pointer when is_integer(pointer) <- :ets.last(book.records),
         [{^pointer, :free, _size, _time, _tag, below}] <- :ets.lookup(book.records, pointer) do
      :ets.delete(book.records, pointer)
      # A mark above the top would come to lie inside of a later allocation.
      give_back(%{book | top: below, marks: Enum.map(book.marks, &min(&1, below))})
    else
      _ -> book
    end
  end

  # Takes all off a stack that begins at `mark` or above.
  defp cut(book, mark) do
    case :ets.last(book.records) do
      pointer when is_integer(pointer) and pointer >= mark ->
        [record] = :ets.take(book.records, pointer)
        live = if elem(record, 1) == :free, do: 0, else: 1
        cut(%{book | active: book.active - live}, mark)

      _ ->
        %{book | top: min(book.top, mark)}
    end
  end

  defp reset(book) do
    if book.records, do: :ets.delete_all_objects(book.records)

    %{
      book
      | top: book.base,
        marks: [],
        made: 0,
        allocated: 0,
        active: 0,
        held: 0,
        peak: 0,
        growths: 0
    }
  end
end
