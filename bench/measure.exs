defmodule Bench.Measure do
  @moduledoc false
  # Times functions against a baseline in the same run. Machines are noisy, so each function is
  # run in many short batches, those of a function and its baseline in turn, and the median
  # batch counts.

  @batches 15
  @batch_ns 4_000_000

  @doc "Median nanoseconds of one run, for each of `{name, function}`."
  def medians(functions) do
    sized = for {name, function} <- functions, do: {name, function, batch_size(function)}

    1..@batches
    |> Enum.map(fn _batch ->
      for {name, function, size} <- sized, do: {name, per_run(function, size)}
    end)
    |> List.flatten()
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    |> Map.new(fn {name, times} -> {name, times |> Enum.sort() |> Enum.at(div(@batches, 2))} end)
  end

  @doc "Prints one line: the measured time, the baseline's, and their ratio."
  def compare(label, function, baseline_label, baseline) do
    times = medians(measured: function, baseline: baseline)
    ratio = times.measured / times.baseline

    IO.puts([
      String.pad_trailing(label, 26),
      String.pad_leading(time(times.measured), 10),
      "   ",
      String.pad_trailing(baseline_label, 26),
      String.pad_leading(time(times.baseline), 10),
      String.pad_leading(:erlang.float_to_binary(ratio, decimals: 2), 9),
      " x"
    ])

    times
  end

  def header(title) do
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

  def time(ns) when ns < 1_000, do: "#{round(ns)} ns"
  def time(ns) when ns < 1_000_000, do: "#{Float.round(ns / 1_000, 2)} µs"
  def time(ns), do: "#{Float.round(ns / 1_000_000, 2)} ms"

  defp batch_size(function) do
    function.()
    # Enough runs to be seen by the clock, then as many as fill a batch.
    tenth = Enum.find([1, 10, 100, 1_000, 10_000], &(per_run(function, &1) * &1 > @batch_ns / 20))
    size = tenth || 10_000
    max(1, round(@batch_ns / max(per_run(function, size), 1)))
  end

  defp per_run(function, size) do
    # A collection in the middle of a batch belongs to whatever made the garbage before it.
    :erlang.garbage_collect()
    start = System.monotonic_time(:nanosecond)
    repeat(function, size)
    (System.monotonic_time(:nanosecond) - start) / size
  end

  defp repeat(_function, 0), do: :ok

  defp repeat(function, n) do
    function.()
    repeat(function, n - 1)
  end
end
