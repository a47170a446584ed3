defmodule Beamr.Struct.Codec do
  @moduledoc false
  # Layouts, and their values to bytes and back, one field after the other. What
  # `Beamr.Struct.Compiler` makes of a layout does the same in one pattern match, and comes back
  # here for what that cannot do.
  #
  # A type as users write it is resolved once, when the layout is made, to one of
  #
  #     :i8 … :f64, :bool
  #     {:ptr, bits, target}        target nil, or a type as users write it
  #     {:string, n}, {:bytes, n}
  #     {:enum, type, names to integers, integers to names}
  #     {:array, type, n, element size}
  #     {:struct, layout}

  alias Beamr.{Struct, StructError}

  @integers %{
    i8: {1, -0x80, 0x7F},
    u8: {1, 0, 0xFF},
    i16: {2, -0x8000, 0x7FFF},
    u16: {2, 0, 0xFFFF},
    i32: {4, -0x80000000, 0x7FFFFFFF},
    u32: {4, 0, 0xFFFFFFFF},
    i64: {8, -0x8000000000000000, 0x7FFFFFFFFFFFFFFF},
    u64: {8, 0, 0xFFFFFFFFFFFFFFFF}
  }
  @integer_types Map.keys(@integers)
  @scalars [:f32, :f64, :bool | @integer_types]

  # The least number that rounds to an infinite f32.
  @f32_limit 3.4028235677973366e38

  defguardp is_f32(x) when is_float(x) and x > -@f32_limit and x < @f32_limit

  @doc "The least float that is too large for an f32."
  def f32_limit, do: @f32_limit

  ## Layouts

  @spec layout([tuple()], keyword()) :: Struct.t()
  def layout(fields, opts) do
    opts =
      Keyword.validate!(opts,
        packed: false,
        union: false,
        overlap: false,
        pointers: 32,
        struct: nil,
        name: nil
      )

    for name <- [:packed, :union, :overlap], not is_boolean(opts[name]) do
      refuse("#{inspect(name)} must be true or false, given: #{inspect(opts[name])}")
    end

    pointers = pointers(opts[:pointers])
    fields = place(fields, opts, pointers)
    check_names(fields)
    alignment = fields |> Enum.map(& &1.alignment) |> Enum.max(fn -> 1 end)
    size = fields |> Enum.map(&(&1.offset + &1.size)) |> Enum.max(fn -> 0 end)
    size = align(size, alignment)
    if size == 0, do: refuse("a layout needs at least one byte")
    overlapping = overlapping(fields)

    unless opts[:union] or opts[:overlap] or overlapping == [] do
      refuse("the fields #{names(overlapping)} overlap (overlap: true allows it)")
    end

    %Struct{
      name: opts[:name],
      fields: Enum.sort_by(fields, & &1.offset),
      size: size,
      alignment: alignment,
      overlapping: overlapping,
      struct: opts[:struct]
    }
  end

  defp place(fields, opts, pointers) do
    {fields, _end} =
      Enum.map_reduce(fields, 0, fn field, previous ->
        {name, type, field_opts} = field(field)
        type = resolve(type, pointers)
        alignment = if opts[:packed], do: 1, else: alignment(type)
        size = size(type)

        offset =
          case Keyword.validate!(field_opts, offset: nil)[:offset] do
            nil -> if(opts[:union], do: 0, else: align(previous, alignment))
            offset when is_integer(offset) and offset >= 0 -> offset
            other -> refuse("the offset of #{inspect(name)} must be bytes: #{inspect(other)}")
          end

        {%{name: name, type: type, offset: offset, size: size, alignment: alignment},
         offset + size}
      end)

    fields
  end

  defp field({name, type}) when is_atom(name), do: {name, type, []}
  defp field({name, type, opts}) when is_atom(name) and is_list(opts), do: {name, type, opts}

  defp field(other),
    do: refuse("a field is {name, type} or {name, type, opts}: #{inspect(other)}")

  defp check_names(fields) do
    names = Enum.map(fields, & &1.name)

    with [name | _] <- names -- Enum.uniq(names) do
      refuse("there are two fields #{inspect(name)}")
    end
  end

  # The names of the fields that share a byte with another.
  defp overlapping(fields) do
    for a <- fields, Enum.any?(fields, &(&1.name != a.name and overlap?(a, &1))), do: a.name
  end

  defp overlap?(a, b), do: a.offset < b.offset + b.size and b.offset < a.offset + a.size

  defp pointers(bits) when bits in [32, 64], do: bits
  defp pointers(%Beamr.Instance{module: module}), do: pointers(module)

  defp pointers(%Beamr.Module{} = module) do
    memories = for {name, {:memory, type}} <- Beamr.Module.exports(module), do: {name, type}

    case List.keyfind(memories, "memory", 0, List.first(memories)) do
      {_name, %{index_type: :i64}} -> 64
      _ -> 32
    end
  end

  defp pointers(other) do
    refuse(":pointers must be 32, 64, a module or an instance, given: #{inspect(other)}")
  end

  @doc "The type as this module takes it."
  def resolve(type, _pointers) when type in @scalars, do: type
  def resolve(:ptr, pointers), do: {:ptr, pointers, nil}
  def resolve({:ptr, target}, pointers), do: {:ptr, pointers, {target, pointers}}
  def resolve({:string, n}, _) when is_integer(n) and n > 0, do: {:string, n}
  def resolve({:bytes, n}, _) when is_integer(n) and n >= 0, do: {:bytes, n}
  def resolve({:enum, names}, pointers), do: resolve({:enum, :i32, names}, pointers)

  def resolve({:enum, type, names}, _pointers)
      when type in @integer_types and (is_list(names) or is_map(names)) do
    to_integer = Map.new(names)

    for {name, integer} <- to_integer, not (is_atom(name) and in_range?(integer, type)) do
      refuse("no #{type} value: #{inspect({name, integer})}")
    end

    # Of several names for an integer, the first is read.
    to_name = names |> Enum.reverse() |> Map.new(fn {name, integer} -> {integer, name} end)
    {:enum, type, to_integer, to_name}
  end

  def resolve({:array, type, n}, pointers) when is_integer(n) and n >= 0 do
    type = resolve(type, pointers)
    {:array, type, n, size(type)}
  end

  def resolve({:struct, fields}, pointers) when is_list(fields) do
    {:struct, layout(fields, pointers: pointers)}
  end

  def resolve({:union, fields}, pointers) when is_list(fields) do
    {:struct, layout(fields, pointers: pointers, union: true)}
  end

  def resolve(%Struct{} = layout, _pointers), do: {:struct, layout}

  def resolve(module, _pointers) when is_atom(module) do
    case module_layout(module) do
      nil -> refuse("unknown type: #{inspect(module)}")
      layout -> {:struct, layout}
    end
  end

  def resolve(other, _pointers), do: refuse("unknown type: #{inspect(other)}")

  @doc "The layout of a module that uses Beamr.Struct, or nil."
  def module_layout(module) do
    # The module may not be loaded yet, or, while one is compiled that uses it, not even compiled.
    if function_exported?(module, :__beamr_layout__, 0) or
         (match?({:module, _}, Code.ensure_compiled(module)) and
            function_exported?(module, :__beamr_layout__, 0)),
       do: module.__beamr_layout__()
  end

  for {type, {size, _low, _high}} <- @integers do
    def size(unquote(type)), do: unquote(size)
  end

  def size(:f32), do: 4
  def size(:f64), do: 8
  def size(:bool), do: 1
  def size({:ptr, bits, _target}), do: div(bits, 8)
  def size({:string, n}), do: n
  def size({:bytes, n}), do: n
  def size({:enum, type, _, _}), do: size(type)
  def size({:array, _type, n, size}), do: n * size
  def size({:struct, layout}), do: layout.size

  def alignment({kind, _n}) when kind in [:string, :bytes], do: 1
  def alignment({:array, type, _n, _size}), do: alignment(type)
  def alignment({:struct, layout}), do: layout.alignment
  def alignment(type), do: size(type)

  @doc "What a field is before anything is known of it."
  def zero(type) when type in [:f32, :f64], do: 0.0
  def zero(:bool), do: false
  def zero({:string, _n}), do: ""
  def zero({:bytes, n}), do: :binary.copy(<<0>>, n)
  def zero({:enum, _type, _to_integer, to_name}), do: Map.get(to_name, 0, 0)
  def zero({:array, type, n, _size}), do: List.duplicate(zero(type), n)

  def zero({:struct, layout}) do
    into(layout, for(f <- layout.fields, do: {f.name, zero(f, layout)}))
  end

  def zero(_integer), do: 0

  def zero(field, layout) do
    if field.name in layout.overlapping, do: nil, else: zero(field.type)
  end

  @doc "The type and the offset of what a path leads to."
  @spec find(Struct.t(), [atom() | non_neg_integer()]) ::
          {:ok, {term(), non_neg_integer()}} | :error
  def find(layout, path), do: find({:struct, layout}, path, 0)

  defp find(type, [], offset), do: {:ok, {type, offset}}

  defp find({:struct, layout}, [name | path], offset) do
    case Enum.find(layout.fields, &(&1.name == name)) do
      nil -> :error
      field -> find(field.type, path, offset + field.offset)
    end
  end

  defp find({:array, type, n, size}, [index | path], offset)
       when is_integer(index) and index in 0..(n - 1)//1 do
    find(type, path, offset + index * size)
  end

  defp find(_type, _path, _offset), do: :error

  def align(offset, alignment), do: div(offset + alignment - 1, alignment) * alignment

  defp names(names), do: Enum.map_join(names, ", ", &inspect/1)
  defp refuse(message), do: raise(ArgumentError, message)

  ## Bytes to values

  def decode(:i8, <<n::signed-8>>), do: n
  def decode(:u8, <<n>>), do: n
  def decode(:i16, <<n::little-signed-16>>), do: n
  def decode(:u16, <<n::little-16>>), do: n
  def decode(:i32, <<n::little-signed-32>>), do: n
  def decode(:u32, <<n::little-32>>), do: n
  def decode(:i64, <<n::little-signed-64>>), do: n
  def decode(:u64, <<n::little-64>>), do: n
  def decode(:f32, <<x::little-float-32>>), do: x
  def decode(:f32, <<0::16, 0x80, 0x7F>>), do: :infinity
  def decode(:f32, <<0::16, 0x80, 0xFF>>), do: :neg_infinity
  def decode(:f32, <<_::32>>), do: :nan
  def decode(:f64, <<x::little-float-64>>), do: x
  def decode(:f64, <<0::48, 0xF0, 0x7F>>), do: :infinity
  def decode(:f64, <<0::48, 0xF0, 0xFF>>), do: :neg_infinity
  def decode(:f64, <<_::64>>), do: :nan
  def decode(:bool, <<n>>), do: n != 0

  def decode({:ptr, bits, _target}, bytes),
    do: decode(if(bits == 32, do: :u32, else: :u64), bytes)

  def decode({:string, _n}, bytes), do: bytes |> before_nul() |> :binary.copy()
  def decode({:bytes, _n}, bytes), do: :binary.copy(bytes)

  def decode({:enum, type, _to_integer, to_name}, bytes) do
    integer = decode(type, bytes)
    Map.get(to_name, integer, integer)
  end

  def decode({:array, :f64, _n, _size}, bytes), do: f64s(bytes)
  def decode({:array, type, n, 0}, ""), do: List.duplicate(zero(type), n)
  def decode({:array, type, n, 0}, _bytes), do: List.duplicate(decode(type, ""), n)
  def decode({:array, type, _n, size}, bytes), do: decode_all(type, size, bytes)
  def decode({:struct, layout}, bytes), do: decode_struct(layout, bytes)

  def decode_struct(%{codec: nil} = layout, bytes), do: decode_fields(layout, bytes)
  def decode_struct(%{codec: module}, bytes), do: module.__decode__(bytes)

  @doc "Decodes values that follow each other."
  def decode_all(:f64, 8, bytes), do: f64s(bytes)
  def decode_all(:u8, 1, bytes), do: :binary.bin_to_list(bytes)
  def decode_all(:i32, 4, bytes), do: for(<<n::little-signed-32 <- bytes>>, do: n)
  def decode_all(:u32, 4, bytes), do: for(<<n::little-32 <- bytes>>, do: n)

  def decode_all({:struct, %{codec: module}}, _size, bytes) when module != nil do
    module.__decode_all__(bytes)
  end

  def decode_all(type, size, bytes) do
    for place <- 0..(byte_size(bytes) - size)//size,
        do: decode(type, binary_part(bytes, place, size))
  end

  defp f64s(<<x::little-float-64, rest::binary>>), do: [x | f64s(rest)]
  defp f64s(<<x::binary-8, rest::binary>>), do: [decode(:f64, x) | f64s(rest)]
  defp f64s(""), do: []

  def decode_fields(layout, bytes) do
    into(
      layout,
      for %{name: name, type: type, offset: offset, size: size} <- layout.fields do
        {name, decode(type, binary_part(bytes, offset, size))}
      end
    )
  end

  defp into(%{struct: nil}, fields), do: :maps.from_list(fields)

  defp into(%{struct: module, name: module}, fields) do
    :maps.from_list([{:__struct__, module} | fields])
  end

  defp into(%{struct: module}, fields), do: struct(module, fields)

  def before_nul(bytes) do
    case :binary.match(bytes, <<0>>) do
      {at, 1} -> binary_part(bytes, 0, at)
      :nomatch -> bytes
    end
  end

  ## Values to bytes. What does not fit is thrown, with the path to it, innermost first.

  @spec encode(term(), term(), [atom() | non_neg_integer()]) :: iodata()
  def encode(type, n, path) when type in @integer_types do
    unless is_integer(n), do: fail(:type, path, type, n)
    unless in_range?(n, type), do: fail(:range, path, type, n)
    bits = 8 * size(type)
    <<n::little-size(bits)>>
  end

  def encode(:f32, x, _path) when is_f32(x), do: <<x::little-float-32>>
  def encode(:f32, :nan, _path), do: <<0::16, 0xC0, 0x7F>>
  def encode(:f32, :infinity, _path), do: <<0::16, 0x80, 0x7F>>
  def encode(:f32, :neg_infinity, _path), do: <<0::16, 0x80, 0xFF>>
  def encode(:f64, x, _path) when is_float(x), do: <<x::little-float-64>>
  def encode(:f64, :nan, _path), do: <<0::48, 0xF8, 0x7F>>
  def encode(:f64, :infinity, _path), do: <<0::48, 0xF0, 0x7F>>
  def encode(:f64, :neg_infinity, _path), do: <<0::48, 0xF0, 0xFF>>

  def encode(type, n, path) when type in [:f32, :f64] and is_integer(n) do
    encode(type, :erlang.float(n), path)
  catch
    :error, :badarg -> fail(:range, path, type, n)
    %StructError{reason: :range} -> fail(:range, path, type, n)
  end

  def encode(:f32, x, path) when is_float(x), do: fail(:range, path, :f32, x)
  def encode(:bool, true, _path), do: <<1>>
  def encode(:bool, false, _path), do: <<0>>
  def encode({:ptr, bits, target}, nil, path), do: encode({:ptr, bits, target}, 0, path)
  def encode({:ptr, 32, _target}, n, path), do: encode(:u32, n, path)
  def encode({:ptr, 64, _target}, n, path), do: encode(:u64, n, path)

  def encode({:string, n} = type, string, path) when is_binary(string) do
    cond do
      byte_size(string) >= n -> fail(:length, path, type, string)
      before_nul(string) != string -> fail(:nul, path, type, string)
      true -> [string, zeros(n - byte_size(string))]
    end
  end

  def encode({:bytes, n} = type, bytes, path) when is_binary(bytes) do
    if byte_size(bytes) == n, do: bytes, else: fail(:length, path, type, bytes)
  end

  def encode({:enum, type, to_integer, _to_name} = enum, name, path) when is_atom(name) do
    case to_integer do
      %{^name => integer} -> encode(type, integer, path)
      _ -> fail(:type, path, enum, name)
    end
  end

  def encode({:enum, type, _, _}, integer, path) when is_integer(integer) do
    encode(type, integer, path)
  end

  def encode({:array, type, n, _size} = array, values, path) when is_list(values) do
    case proper_length(values) do
      ^n -> encode_all(type, values, path)
      _ -> fail(:length, path, array, values)
    end
  end

  def encode({:struct, %{codec: nil} = layout}, value, path) when is_map(value) do
    encode_fields(layout, value, path)
  end

  def encode({:struct, %{codec: module}}, value, path) when is_map(value) do
    module.__encode__(value, path)
  end

  def encode(type, value, path), do: fail(:type, path, type, value)

  @doc "Encodes values one after the other; their places are in the path of what does not fit."
  def encode_all(type, values, path) do
    {iodata, _n} = Enum.map_reduce(values, 0, &{encode(type, &1, [&2 | path]), &2 + 1})
    iodata
  end

  def encode_fields(layout, value, path) do
    given = check_known(value, layout, path)

    {iodata, written} =
      layout
      |> given_fields(layout.fields, given, path)
      |> Enum.map_reduce(0, fn %{name: name, offset: offset} = field, from ->
        bytes = encode(field.type, Map.fetch!(given, name), [name | path])
        {[zeros(offset - from) | bytes], offset + field.size}
      end)

    [iodata | zeros(layout.size - written)]
  end

  # The fields to be written, in the order of their bytes, of which no two have any in common.
  defp given_fields(%{overlapping: []} = layout, fields, given, path) do
    for field <- fields, do: given?(field, layout, given, path)
    fields
  end

  defp given_fields(layout, fields, given, path) do
    fields = Enum.filter(fields, &(given?(&1, layout, given, path) and &1.size > 0))

    for {a, b} <- Enum.zip(fields, Enum.drop(fields, 1)), overlap?(a, b) do
      fail(:overlap, [b.name | path], a.name, nil)
    end

    fields
  end

  @doc "The bytes of the fields that are given, and where they go."
  @spec pieces(Struct.t(), map()) :: [{non_neg_integer(), iodata()}]
  def pieces(layout, fields) do
    given = check_known(fields, layout, [])
    chosen = Enum.filter(layout.fields, &is_map_key(given, &1.name))

    for field <- given_fields(layout, chosen, given, []) do
      {field.offset, encode(field.type, Map.fetch!(given, field.name), [field.name])}
    end
  end

  defp check_known(value, layout, path) do
    given = if is_struct(value), do: Map.delete(value, :__struct__), else: value
    known = Enum.count(layout.fields, &is_map_key(given, &1.name))

    if map_size(given) > known do
      [name | _] = Map.keys(given) -- Enum.map(layout.fields, & &1.name)
      fail(:unknown_field, [name | path], nil, nil)
    end

    given
  end

  defp given?(%{name: name} = field, layout, given, path) do
    optional = name in layout.overlapping

    case given do
      %{^name => nil} when optional -> false
      %{^name => _value} -> true
      _ when optional -> false
      _ -> fail(:missing_field, [name | path], field.type, nil)
    end
  end

  @spec fail(atom(), list(), term(), term()) :: no_return()
  def fail(reason, path, type, given) do
    throw(%StructError{
      reason: reason,
      field: Enum.reverse(path),
      wanted: wanted(reason, type),
      given: given
    })
  end

  defp wanted(:range, :f32), do: {:f32, {-3.4028234663852886e38, 3.4028234663852886e38}}
  defp wanted(:range, :f64), do: {:f64, {-1.7976931348623157e308, 1.7976931348623157e308}}
  defp wanted(:range, type), do: {type, range(type)}
  defp wanted(_reason, {:ptr, _bits, _target}), do: :ptr
  defp wanted(_reason, {:enum, _type, to_integer, _}), do: {:enum, Map.keys(to_integer)}
  defp wanted(_reason, {:array, type, n, _size}), do: {:array, wanted(:type, type), n}
  defp wanted(_reason, {:struct, layout}), do: {:struct, Enum.map(layout.fields, & &1.name)}
  defp wanted(_reason, type), do: type

  def range(type) do
    {_size, low, high} = @integers[type]
    {low, high}
  end

  for {type, {_size, low, high}} <- @integers do
    defp in_range?(n, unquote(type)), do: is_integer(n) and n in unquote(low)..unquote(high)
  end

  defp proper_length(list) do
    length(list)
  rescue
    ArgumentError -> :improper
  end

  defp zeros(0), do: ""
  defp zeros(n), do: :binary.copy(<<0>>, n)
end
