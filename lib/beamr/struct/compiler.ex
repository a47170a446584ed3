defmodule Beamr.Struct.Compiler do
  @moduledoc false
  # Makes clauses of a layout: one binary pattern that decodes a whole struct, and one that
  # encodes it, each with a second clause for what the first does not match.

  alias Beamr.Struct.Codec

  # Larger parts are decoded by themselves, so that no pattern grows without bounds.
  @most_leaves 64

  @doc "Clauses of `decode`: pairs of the segments of a binary pattern and a body."
  def decode(%{overlapping: [_ | _]} = layout) do
    bytes = Macro.unique_var(:bytes, __MODULE__)
    layout_ast = Macro.escape(layout)

    [
      {[quote(do: unquote(bytes) :: binary - size(unquote(layout.size)))],
       quote(do: unquote(Codec).decode_fields(unquote(layout_ast), unquote(bytes)))}
    ]
  end

  def decode(layout) do
    # The BEAM matches no NaN and no infinity as a float: where there are any, the second clause
    # takes the floats as bytes.
    [:floats, :bytes]
    |> Enum.map(&take_fields(layout, &1))
    |> Enum.uniq_by(fn {segments, _value} -> Macro.to_string(strip(segments)) end)
  end

  # Unique variables differ by their counters.
  defp strip(ast), do: Macro.prewalk(ast, &Macro.update_meta(&1, fn _meta -> [] end))

  defp take_fields(layout, floats) do
    {parts, last} =
      Enum.map_reduce(layout.fields, 0, fn field, from ->
        {segments, value} = take(field.type, floats)
        {{skip(field.offset - from) ++ segments, {field.name, value}}, field.offset + field.size}
      end)

    segments = Enum.flat_map(parts, &elem(&1, 0)) ++ skip(layout.size - last)
    {segments, map(layout, Enum.map(parts, &elem(&1, 1)))}
  end

  defp map(%{struct: nil}, pairs), do: {:%{}, [], pairs}
  defp map(%{struct: module}, pairs), do: {:%{}, [], [{:__struct__, module} | pairs]}

  defp skip(0), do: []
  defp skip(n), do: [quote(do: _ :: binary - size(unquote(n)))]

  defp take(type, floats) do
    case inlined(type) do
      {:segment, _} when type in [:f32, :f64] and floats == :bytes -> take_bytes(type)
      {:segment, segment} -> take_segment(segment)
      {:fields, layout} -> take_fields(layout, floats)
      {:elements, type, n} -> take_elements(type, n, floats)
      :no -> take_bytes(type)
    end
  end

  defp take_segment(segment) do
    value = Macro.unique_var(:value, __MODULE__)
    {[quote(do: unquote(value) :: unquote(segment))], value}
  end

  defp take_bytes(type) do
    bytes = Macro.unique_var(:bytes, __MODULE__)

    {[quote(do: unquote(bytes) :: binary - size(unquote(Codec.size(type))))],
     quote(do: unquote(Codec).decode(unquote(Macro.escape(type)), unquote(bytes)))}
  end

  defp take_elements(type, n, floats) do
    parts = for _ <- 1..n//1, do: take(type, floats)
    {Enum.flat_map(parts, &elem(&1, 0)), Enum.map(parts, &elem(&1, 1))}
  end

  @doc "The first clause of `encode`, as a pattern, a guard and a body; nil where there is none."
  def encode(%{overlapping: [_ | _]}, _path), do: nil

  def encode(layout, path) do
    {pattern, guards, segments} = give_fields(layout, path)
    guard = Enum.reduce(guards, true, &quote(do: unquote(&2) and unquote(&1)))
    {pattern, guard, quote(do: <<unquote_splicing(segments)>>)}
  end

  defp give_fields(layout, path) do
    {parts, last} =
      Enum.map_reduce(layout.fields, 0, fn field, from ->
        {pattern, guards, segment} = give(field, path)
        segments = pad(field.offset - from) ++ [segment]
        {{{field.name, pattern}, guards, segments}, field.offset + field.size}
      end)

    given = Macro.unique_var(:given, __MODULE__)
    pattern = quote(do: unquote(map(layout, Enum.map(parts, &elem(&1, 0)))) = unquote(given))
    keys = length(layout.fields) + if(layout.struct, do: 1, else: 0)
    guards = [quote(do: map_size(unquote(given)) == unquote(keys))]
    segments = Enum.flat_map(parts, &elem(&1, 2)) ++ pad(layout.size - last)
    {pattern, guards ++ Enum.flat_map(parts, &elem(&1, 1)), segments}
  end

  defp pad(0), do: []
  defp pad(n), do: [quote(do: 0 :: size(unquote(8 * n)))]

  defp give(%{name: name, type: type}, path) do
    value = Macro.unique_var(:value, __MODULE__)

    case inlined(type) do
      {:segment, segment} ->
        {value, [fits(type, value)], quote(do: unquote(value) :: unquote(segment))}

      _ ->
        type = Macro.escape(type)
        path = quote(do: [unquote(name) | unquote(path)])
        bytes = quote(do: unquote(Codec).encode(unquote(type), unquote(value), unquote(path)))
        {value, [], quote(do: :erlang.iolist_to_binary(unquote(bytes)) :: binary)}
    end
  end

  defp fits({:ptr, 32, _target}, value), do: fits(:u32, value)
  defp fits({:ptr, 64, _target}, value), do: fits(:u64, value)

  defp fits(:f32, value) do
    limit = Codec.f32_limit()

    quote do
      is_float(unquote(value)) and unquote(value) > unquote(-limit) and
        unquote(value) < unquote(limit)
    end
  end

  defp fits(:f64, value), do: quote(do: is_float(unquote(value)))

  defp fits(type, value) do
    {low, high} = Codec.range(type)

    quote do
      is_integer(unquote(value)) and unquote(value) >= unquote(low) and
        unquote(value) <= unquote(high)
    end
  end

  # How a type can be part of a larger pattern.
  defp inlined(type) do
    case type do
      :i8 -> {:segment, quote(do: signed - 8)}
      :u8 -> {:segment, quote(do: 8)}
      :i16 -> {:segment, quote(do: little - signed - 16)}
      :u16 -> {:segment, quote(do: little - 16)}
      :i32 -> {:segment, quote(do: little - signed - 32)}
      :u32 -> {:segment, quote(do: little - 32)}
      :i64 -> {:segment, quote(do: little - signed - 64)}
      :u64 -> {:segment, quote(do: little - 64)}
      :f32 -> {:segment, quote(do: little - float - 32)}
      :f64 -> {:segment, quote(do: little - float - 64)}
      {:ptr, 32, _target} -> {:segment, quote(do: little - 32)}
      {:ptr, 64, _target} -> {:segment, quote(do: little - 64)}
      {:struct, layout} -> if(inlined_struct?(layout), do: {:fields, layout}, else: :no)
      {:array, type, n, _size} -> if(leaves(type) * n <= 16, do: {:elements, type, n}, else: :no)
      _ -> :no
    end
  end

  defp inlined_struct?(layout) do
    layout.overlapping == [] and leaves({:struct, layout}) <= @most_leaves and
      layout.struct in [nil, layout.name]
  end

  defp leaves({:struct, layout}), do: layout.fields |> Enum.map(&leaves(&1.type)) |> Enum.sum()
  defp leaves({:array, type, n, _size}), do: leaves(type) * n
  defp leaves(_type), do: 1
end
