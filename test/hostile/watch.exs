defmodule Hostile.Watch do
  @moduledoc false
  # Runs workers, each through its own numbers; kills some; ends what takes long, as a user would;
  # and tells a hang from that. What each worker is about to do is in a file first, which outlives
  # a crash of the VM.

  alias Hostile.Pool

  @table Hostile.Clock
  @finds Hostile.Finds
  @kept 32
  @line 240

  # How long a step takes before its guests are interrupted, before everything it may wait for is
  # closed and killed, before its own process is killed, and before that is a hang.
  @interrupt 25
  @close 200
  @kill 5_000
  @hang 20_000

  # 400 MB.
  @max_heap 50_000_000

  def start do
    :ets.new(@finds, [:named_table, :public])
    :ets.new(@table, [:named_table, :public, write_concurrency: true])

    sink = spawn(&sink/0)
    # What guests print goes nowhere.
    Process.unregister(:standard_error)
    Process.register(sink, :standard_error)
    :persistent_term.put({__MODULE__, :sink}, sink)
  end

  defp sink do
    receive do
      {:io_request, from, ref, request} ->
        answer =
          if is_tuple(request) and elem(request, 0) in [:get_line, :get_chars, :get_until],
            do: :eof,
            else: :ok

        send(from, {:io_reply, ref, answer})

      _ ->
        :ok
    end

    sink()
  end

  @doc """
  Runs `step` with each worker's number and each number of `range`. With `kills: true` workers are
  killed now and then; the next one goes on behind the step that the last one was in.
  """
  def run(workers, range, step, opts) do
    :ets.delete_all_objects(@table)
    kills = if opts[:kills], do: :rand.seed_s(:exsss, {workers, range.last, 1})
    live = for worker <- 1..workers, into: %{}, do: start_worker(worker, range, step)
    loop(%{live: live, last: range.last, step: step, kills: kills})
  end

  defp start_worker(worker, range, step) do
    sink = :persistent_term.get({__MODULE__, :sink})

    {pid, monitor} =
      :erlang.spawn_opt(
        fn ->
          Process.flag(:max_heap_size, %{size: @max_heap, kill: true, error_logger: false})
          Process.group_leader(self(), sink)
          Process.put(__MODULE__, open_journal(worker))

          for index <- range do
            :ets.insert(@table, {worker, index, now()})
            attempt(step, worker, index)
          end

          :ets.insert(@table, {worker, range.last + 1, now()})
          # What it has started ends with it.
          exit(:shutdown)
        end,
        [:monitor]
      )

    {monitor, {worker, pid}}
  end

  defp loop(%{live: live}) when live == %{}, do: :ok

  defp loop(state) do
    receive do
      {:DOWN, monitor, :process, _pid, _reason} when is_map_key(state.live, monitor) ->
        {{worker, _pid}, live} = Map.pop!(state.live, monitor)
        loop(%{state | live: go_on(worker, live, state)})

      _other ->
        loop(state)
    after
      25 ->
        live = Map.values(state.live)
        for {worker, pid} <- live, do: look(worker, pid)
        loop(%{state | kills: kill_one(state.kills, live)})
    end
  end

  defp go_on(worker, live, %{last: last, step: step}) do
    next =
      case :ets.lookup(@table, worker) do
        [{_worker, index, _since}] -> index + 1
        [] -> 1
      end

    if next > last do
      live
    else
      {monitor, started} = start_worker(worker, next..last, step)
      Map.put(live, monitor, started)
    end
  end

  # A step catches what it calls: what gets here is a defect of these files.
  defp attempt(step, worker, index) do
    step.(worker, index)
  catch
    kind, reason -> find(:broken, {kind, reason, List.first(__STACKTRACE__)})
  end

  defp kill_one(nil, _live), do: nil

  defp kill_one(kills, live) do
    {dice, kills} = :rand.uniform_s(10, kills)
    {n, kills} = :rand.uniform_s(length(live), kills)
    if dice == 1, do: live |> Enum.at(n - 1) |> elem(1) |> Process.exit(:kill)
    kills
  end

  defp look(worker, pid) do
    case :ets.lookup(@table, worker) do
      [{_worker, index, since}] -> look(worker, pid, index, now() - since)
      [] -> :ok
    end
  end

  defp look(worker, pid, index, elapsed) do
    cond do
      elapsed > @hang ->
        stack =
          for item <- [:status, :current_stacktrace, :message_queue_len],
              do: Process.info(pid, item)

        IO.puts("hang worker #{worker} step #{index}: #{inspect(stack, limit: 60)}")
        System.halt(3)

      elapsed > @kill ->
        find(:wait, {Process.info(pid, :current_stacktrace), last(worker, index)})
        Process.exit(pid, :kill)

      elapsed > @close ->
        spawn(fn ->
          for instance <- handles(), do: Beamr.close(instance)

          for pid <- Pool.all(:server) ++ Pool.all(:victim),
              is_pid(pid),
              do: Process.exit(pid, :kill)
        end)

      elapsed > @interrupt ->
        spawn(fn ->
          for instance <- handles(), do: Beamr.interrupt(instance)
          for pid <- Pool.all(:server), is_pid(pid), do: interrupt(pid)
        end)

      true ->
        :ok
    end
  end

  defp handles do
    if :ets.whereis(Pool) == :undefined do
      []
    else
      raw =
        for ref <- Pool.all(:raw),
            is_reference(ref),
            do: %Beamr.Instance{ref: ref, module: nil, imports: {}}

      for(%Beamr.Instance{} = instance <- Pool.all(:instance), do: instance) ++ raw
    end
  end

  defp interrupt(pid) do
    Beamr.interrupt(pid)
  catch
    _, _ -> :ok
  end

  defp now, do: System.monotonic_time(:millisecond)

  ## What was found

  @doc "Notes what must not happen, and says so the first time."
  def find(kind, what, detail \\ nil) do
    key =
      what
      |> inspect(limit: 40, printable_limit: 300, width: :infinity)
      |> String.replace(~r/#\w+<[^>]*>/, "#")

    if :ets.update_counter(@finds, {kind, key}, 1, {{kind, key}, 0}) == 1 do
      say(
        "found #{kind}: #{key} #{inspect(detail, limit: 60, printable_limit: 300, width: :infinity)}"
      )
    end

    :ok
  end

  # A worker's own standard output is the sink.
  defp say(line), do: IO.puts(Process.whereis(:user), line)

  ## The journal

  defp open_journal(worker) do
    {:ok, file} = :file.open("journal-#{worker}", [:read, :write, :raw, :binary])
    file
  end

  @doc "Writes down what is about to be called."
  def journal(worker, index, module, name, args) do
    text = [
      Integer.to_string(index),
      " ",
      inspect(module),
      ?.,
      Atom.to_string(name),
      ?(,
      Enum.map_intersperse(args, ", ", &brief/1),
      ?)
    ]

    line = text |> IO.iodata_to_binary() |> binary_part_at_most(@line - 1)
    line = [line, :binary.copy(" ", @line - 1 - byte_size(line)), ?\n]
    if file = Process.get(__MODULE__), do: :file.pwrite(file, rem(index, @kept) * @line, line)
    _ = worker
    :ok
  end

  defp binary_part_at_most(text, n), do: binary_part(text, 0, min(n, byte_size(text)))

  defp last(worker, index) do
    {:ok, text} = File.read("journal-#{worker}")
    prefix = "#{index} "
    text |> String.split("\n") |> Enum.find("", &String.starts_with?(&1, prefix)) |> String.trim()
  end

  # Handles have no names that would be the same in another VM.
  defp brief(term) when is_integer(term) and abs(term) < 0x1_0000_0000_0000_0000,
    do: Integer.to_string(term)

  defp brief(term) when is_integer(term),
    do: "integer of #{term |> Integer.digits() |> length()} digits"

  defp brief(term) when is_float(term), do: Float.to_string(term)
  defp brief(term) when is_atom(term), do: inspect(term)

  defp brief(term) when is_binary(term) do
    if byte_size(term) <= 24, do: inspect(term), else: "<<#{byte_size(term)} bytes>>"
  end

  defp brief(term) when is_bitstring(term), do: "<<#{bit_size(term)} bits>>"
  defp brief(%struct{}), do: "%" <> inspect(struct) <> "{}"
  defp brief(term) when is_map(term), do: "%{#{map_size(term)}}"
  defp brief([]), do: "[]"

  defp brief(term) when is_list(term) do
    case cells(term, 0) do
      n when is_integer(n) and n <= 6 -> "[" <> Enum.map_join(term, ", ", &shallow/1) <> "]"
      n -> "[#{inspect(n)} elements]"
    end
  end

  defp brief(term) when is_tuple(term) and tuple_size(term) < 10,
    do: "{" <> (term |> Tuple.to_list() |> Enum.map_join(", ", &shallow/1)) <> "}"

  defp brief(term) when is_pid(term), do: "pid"
  defp brief(term) when is_reference(term), do: "ref"
  defp brief(term) when is_function(term), do: "fun"
  defp brief(_term), do: "term"

  defp shallow({name, value}) when is_atom(name), do: "#{name}: #{shallow(value)}"
  defp shallow(term) when is_list(term) or is_tuple(term), do: "…"
  defp shallow(term), do: brief(term)

  defp cells([_ | rest], n), do: cells(rest, n + 1)
  defp cells([], n), do: n
  defp cells(_tail, n), do: {n, :improper}
end
