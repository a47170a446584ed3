# How much memory does an instance take, and how many are there room for? What does it cost to be
# compact?
#
#     mix run bench/many.exs                         # 5,000 as they are, 100,000 compact ones
#     BEAMR_MANY=1000000 mix run bench/many.exs      # a million compact ones: 18 GB of memory

Code.require_file("measure.exs", __DIR__)
Code.require_file("compute.exs", __DIR__)
Code.require_file("alive.exs", __DIR__)

defmodule Bench.Many do
  import Bench.Measure

  def run do
    title("Many instances, all alive")
    alive("instances", unless_quick(5_000, 10), [])
    alive("compact instances", many(), compact: true)

    header("Compact instances and others")
    [plain, compact] = for kind <- [[], [compact: true]], do: instance(kind)

    for {label, function, argument} <- [
          {"fib(27)", "fib", 27},
          {"sum of 1 MiB", "sum", 1_048_576},
          {"copy of 1 MiB", "copy", 1_048_576}
        ] do
      [call, base] =
        for wasm <- [compact, plain], do: fn -> Beamr.call(wasm, function, [argument]) end

      compare("#{label}, compact", call, "not compact", base)
    end

    [close, base] =
      for kind <- [[compact: true], []] do
        module = Beamr.compile!(Bench.Compute.guest(), kind)
        fn -> module |> Beamr.instantiate!() |> Beamr.close() end
      end

    compare("instantiate and close", close, "not compact", base)
  end

  defp many do
    case System.get_env("BEAMR_MANY") do
      nil -> unless_quick(100_000, 10)
      count -> String.to_integer(count)
    end
  end

  defp instance(kind), do: Bench.Compute.guest() |> Beamr.compile!(kind) |> Beamr.instantiate!()

  # In a node of its own: memory that this one has freed would be used again, and not be seen.
  defp alive(label, count, options) do
    paths = Enum.flat_map(:code.get_path(), &[~c"-pa", &1])
    {:ok, peer, _node} = :peer.start_link(%{connection: :standard_io, args: paths})
    {:ok, _apps} = :peer.call(peer, :application, :ensure_all_started, [:beamr])
    files = for file <- ~w(measure alive), do: Path.join(__DIR__, "#{file}.exs")
    for file <- files, do: :peer.call(peer, Code, :require_file, [file])
    found = :peer.call(peer, Bench.Alive, :measure, [count, options], :infinity)
    :peer.stop(peer)

    fact("#{count} #{label}: #{kib(found.idle)} resident each, #{kib(found.used)} once called")

    fact(
      "  made in #{time(found.make)} each, called in #{time(found.call)} for the first time and " <>
        "#{time(found.call_again)} after it, closed in #{time(found.close)}; " <>
        "#{found.mappings} mappings, #{div(found.page_tables, 1_048_576)} MiB of page tables"
    )
  end
end

Bench.Many.run()
