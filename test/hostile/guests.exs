defmodule Hostile.Guests do
  @moduledoc false
  # Random modules, whole and damaged, compiled, instantiated and used under limits.

  alias Hostile.{Terms, Watch}

  @workers 2
  @modules_per_round 200

  def modules_per_round, do: @modules_per_round

  def round(seed, round, smith, workers \\ nil) do
    workers = workers || @workers
    Hostile.Pool.new()
    per_worker = div(@modules_per_round, workers)
    first = (seed * 1_000_000 + round) * @modules_per_round

    Watch.run(
      workers,
      1..per_worker,
      fn worker, index ->
        number = first + (worker - 1) * per_worker + index - 1
        step(number, module(smith, number, per_worker - index + 1), worker, index)
      end,
      kills: false
    )
  after
    Hostile.Pool.delete()
  end

  # One program makes the modules of a worker, one after the other.
  defp module(smith, number, count) do
    port =
      with nil <- Process.get(:smith) do
        port =
          Port.open({:spawn_executable, smith}, [
            :binary,
            packet: 4,
            args: ["#{number}", "#{count}"]
          ])

        Process.put(:smith, port)
        port
      end

    receive do
      {^port, {:data, module}} -> module
    end
  end

  defp step(number, module, worker, index) do
    :rand.seed(:exsss, {number, 1, 1})
    module = if Terms.chance(35), do: Terms.mutated(module), else: module
    File.write!("module-#{worker}.wasm", module, [:raw])
    note(worker, index, :compile, [number, module])
    options = Terms.pick([[], [], [fuel: true], [deterministic: true], [compact: true]])
    count(:modules)

    case Beamr.compile(module, options) do
      {:ok, compiled} ->
        compiled
        |> instantiate(Beamr.Module.metered?(compiled), worker, index)
        |> use_it(worker, index)

      {:error, error} ->
        message(error)
    end
  end

  defp instantiate(module, metered, worker, index) do
    count(:compiled)

    module =
      if Terms.chance(10),
        do: module |> Beamr.Module.serialize() |> Beamr.Module.deserialize_trusted!(),
        else: module

    fuel = if metered, do: [fuel: 1_000_000], else: []

    options = [
      imports: imports(module),
      stubs: Terms.pick([:zero, :zero, :trap]),
      timeout: 30,
      max_memory: 33_554_432,
      max_table_elements: 100_000
    ]

    note(worker, index, :instantiate, [options])
    Beamr.instantiate(module, fuel ++ options)
  end

  # Whatever is not a function is made as the module asks for it; half of the functions answer
  # anything, the others are stubs.
  defp imports(module) do
    for {module, name, type} <- Beamr.Module.imports(module),
        import = stand_in(type),
        reduce: %{} do
      imports -> Map.update(imports, module, %{name => import}, &Map.put(&1, name, import))
    end
  end

  defp stand_in({:function, %{results: results}}) do
    if Terms.chance(50), do: {:list, fn wasm, args -> answer(wasm, args, results) end}
  end

  defp stand_in({kind, _type}) when kind in [:memory, :global, :table], do: kind
  defp stand_in(_other), do: nil

  defp answer(wasm, _args, results) do
    if Terms.chance(10), do: touch_memory(wasm, [nil, "0"])

    case results do
      [] -> nil
      [type] -> argument(type)
      types -> Enum.map(types, &argument/1)
    end
  end

  defp use_it({:error, error}, _worker, _index), do: message(error)

  defp use_it({:ok, wasm}, worker, index) do
    count(:instantiated)
    exports = Beamr.Module.exports(wasm.module)

    for {name, type} <- Enum.take_random(exports, 12) do
      note(worker, index, :use, [name, type])
      use_export(wasm, name, type)
    end

    touch_memory(wasm, [nil | for({name, {:memory, _}} <- exports, do: name)])
    if Terms.chance(50), do: Beamr.close(wasm)
    use_closed(wasm)
  end

  defp use_closed(wasm), do: Beamr.IO.size(wasm)

  defp use_export(wasm, name, {:function, %{params: params}}) do
    for _ <- 1..2 do
      args = Enum.map(params, &argument/1)
      count(:calls)

      case Beamr.call(wasm, name, args,
             timeout: 20,
             scheduler: Terms.pick([:auto, :normal, :dirty])
           ) do
        {:ok, results} -> feed_back(wasm, name, results)
        {:error, error} -> message(error)
      end
    end
  end

  defp use_export(wasm, name, {:global, _type}) do
    with {:ok, value} <- Beamr.Instance.get_global(wasm, name),
         do: Beamr.Instance.set_global(wasm, name, value)

    Beamr.Instance.set_global(wasm, name, Terms.value_without_pool())
  end

  defp use_export(wasm, name, {:table, _type}) do
    index = Terms.natural()

    with {:ok, value} <- Beamr.Instance.table_get(wasm, name, 0),
         do: Beamr.Instance.table_set(wasm, name, index, value)

    Beamr.Instance.table_get(wasm, name, index)
    Beamr.Instance.table_grow(wasm, name, rem(index, 1_000), nil)
  end

  defp use_export(wasm, name, {:memory, _type}), do: Beamr.IO.grow(wasm, 1, memory: name)
  defp use_export(_wasm, _name, _type), do: :ok

  # What a function answers is good for its like.
  defp feed_back(wasm, _name, results) do
    for ref <- results, is_reference(ref), do: Beamr.call(wasm, ref, [], timeout: 5)
  end

  defp touch_memory(wasm, names) do
    name = Terms.pick(names)
    at = Terms.natural()
    Beamr.IO.read(wasm, at, rem(Terms.natural(), 100_000), memory: name)
    Beamr.IO.write(wasm, at, Terms.bytes(20), memory: name)
    Beamr.IO.read_string(wasm, at, 256, memory: name)
    Beamr.IO.fill(wasm, at, 255, rem(Terms.natural(), 100_000), memory: name)
  end

  defp argument(type) do
    case type do
      :i32 -> Terms.uniform(2 ** 32) - 2 ** 31
      :i64 -> Terms.uniform(2 ** 64) - 2 ** 63
      float when float in [:f32, :f64] -> Terms.pick([0.0, 1.5, -1.0e30, :nan, :infinity])
      :v128 -> :crypto.hash(:md5, <<Terms.uniform(9)>>)
      :externref -> Terms.pick([nil, "term", make_ref()])
      _ -> nil
    end
  end

  defp message(error) do
    case error do
      %{reason: :system, detail: "a defect" <> _} -> Watch.find(:panic, error)
      %{reason: :system} = error -> Watch.find(:system, error)
      _ -> :ok
    end

    Exception.message(error)
  end

  defp note(worker, index, name, args), do: Watch.journal(worker, index, __MODULE__, name, args)
  defp count(what), do: :ets.update_counter(Hostile.Counts, what, 1, {what, 0})
end
