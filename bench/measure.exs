defmodule Bench.Measure do
  @moduledoc false
  # Times functions against a baseline in the same run. Machines are noisy, and noise only ever
  # adds: so each function is run in many short batches, those of a function and its baseline in
  # turn, and the batch at the tenth percentile counts, of both alike.
  #
  # What is printed is also kept, for `bench/all.exs`, in the dictionary of the process.

  @percent 10
  @batches 41
  @batch_ns 2_000_000
  # Slow functions are run in fewer batches, at least as many as this, for so long all together.
  @least_batches 5
  @budget_ns 3_000_000_000

  @doc "Whether it is only to be seen that everything runs: what is measured then says nothing."
  def quick?, do: System.get_env("BEAMR_BENCH_QUICK") != nil

  @doc "One or the other, where a benchmark has a size of its own."
  def unless_quick(size, small), do: if(quick?(), do: small, else: size)

  @doc """
  Nanoseconds of one run, for each of `{name, subject}`. A subject is a function without arguments,
  or `{:batch, function}`: that answers how many nanoseconds so many runs took.
  """
  def times(subjects) do
    sized = for {name, subject} <- subjects, do: {name, subject, batch_size(subject)}
    least = if quick?(), do: 1, else: @least_batches
    most = if quick?(), do: 1, else: @batches
    deadline = now() + @budget_ns

    1..most
    |> Enum.reduce_while([], fn batch, times ->
      done = for {name, subject, size} <- sized, do: {name, per_run(subject, size)}
      over? = batch >= least and now() > deadline
      {if(over?, do: :halt, else: :cont), [done | times]}
    end)
    |> List.flatten()
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    |> Map.new(fn {name, times} -> {name, percentile(times)} end)
  end

  defp percentile(times), do: times |> Enum.sort() |> Enum.at(div(length(times) * @percent, 100))

  @doc "Prints and keeps one row: the measured time, the baseline's, and their ratio."
  def compare(label, subject, baseline_label, baseline) do
    times = times(measured: subject, baseline: baseline)
    row(label, times.measured, baseline_label, times.baseline)
    times
  end

  @doc "The same for what was timed elsewhere, in nanoseconds."
  def row(label, measured, baseline_label, baseline) do
    ratio = measured / baseline
    keep({:row, Process.get(:bench_title), label, measured, baseline_label, baseline})

    IO.puts([
      String.pad_trailing(label, 26),
      String.pad_leading(time(measured), 10),
      "   ",
      String.pad_trailing(baseline_label, 26),
      String.pad_leading(time(baseline), 10),
      String.pad_leading(:erlang.float_to_binary(ratio, decimals: 2), 9),
      " x"
    ])
  end

  @doc "Prints and keeps a figure that has no baseline."
  def fact(text) do
    keep({:fact, Process.get(:bench_title), text})
    IO.puts(text)
  end

  def header(title) do
    Process.put(:bench_title, title)
    IO.puts(["\n", title])

    IO.puts([
      String.pad_trailing("operation", 26),
      String.pad_leading("time", 10),
      "   ",
      String.pad_trailing("baseline", 26),
      String.pad_leading("time", 10),
      String.pad_leading("ratio", 9)
    ])
  end

  @doc "A header for facts."
  def title(title) do
    Process.put(:bench_title, title)
    IO.puts(["\n", title])
  end

  defp keep(figure), do: Process.put(:bench_figures, [figure | Process.get(:bench_figures, [])])

  @doc "Takes what was kept: `{:row, title, label, ns, baseline, ns}` and `{:fact, title, text}`."
  def take_figures, do: Enum.reverse(Process.delete(:bench_figures) || [])

  @doc "Bytes that this node has in physical memory, as Linux tells it."
  def resident_bytes do
    # The second number is that of resident pages.
    with {:ok, text} <- File.read("/proc/self/statm") do
      text |> String.split() |> Enum.at(1) |> String.to_integer() |> Kernel.*(4096)
    else
      _ -> 0
    end
  end

  def kib(bytes), do: "#{Float.round(bytes / 1024, 1)} KiB"

  def time(ns) when ns < 1_000, do: "#{round(ns)} ns"
  def time(ns) when ns < 1_000_000, do: "#{Float.round(ns / 1_000, 2)} µs"
  def time(ns) when ns < 10_000_000_000, do: "#{Float.round(ns / 1_000_000, 2)} ms"
  def time(ns), do: "#{Float.round(ns / 1_000_000_000, 1)} s"

  defp batch_size(subject) do
    per_run(subject, 1)

    if quick?() do
      1
    else
      # Enough runs to be seen by the clock, then as many as fill a batch.
      sizes = [1, 10, 100, 1_000, 10_000]
      size = Enum.find(sizes, 10_000, &(per_run(subject, &1) * &1 > @batch_ns / 20))
      max(1, round(@batch_ns / max(per_run(subject, size), 1)))
    end
  end

  defp per_run({:batch, function}, size), do: function.(size) / size

  defp per_run(function, size) do
    # A collection in the middle of a batch belongs to whatever made the garbage before it.
    :erlang.garbage_collect()
    start = now()
    repeat(function, size)
    (now() - start) / size
  end

  defp repeat(_function, 0), do: :ok

  defp repeat(function, n) do
    function.()
    repeat(function, n - 1)
  end

  defp now, do: System.monotonic_time(:nanosecond)
end
