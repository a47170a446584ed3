defmodule Hostile.Terms do
  @moduledoc false
  # Random terms: what a type's specification asks for, and everything else. What there already is
  # in the way of handles comes from the round's pool.

  alias Hostile.Pool

  @edges for bits <- [7, 8, 15, 16, 31, 32, 53, 63, 64, 65, 128, 1_000],
             sign <- [1, -1],
             by <- [-1, 0, 1],
             do: sign * 2 ** bits + by
  @places [0, 1, 4, 8, 1_023, 1_024, 4_096, 65_528, 65_535, 65_536, 131_072, 16_777_216]
  @names ["f", "memory", "malloc", "free", "loop", "nest", "cb", "get", "ext", "ref", "table"] ++
           [
             "table_ext",
             "global",
             "g_i64",
             "g_f32",
             "g_f64",
             "g_v128",
             "g_ext",
             "g_ref",
             "recurse"
           ] ++
           ["trap", "many", "second", "start", "_start", "main", "swap", "throw", "bulk", "grow"] ++
           ["throw_through", "env", "add", "area", "scale", "sum"]
  @atoms [nil, true, false, :nan, :infinity, :neg_infinity, :undefined, :default, :none] ++
           [:i8, :u8, :i16, :u16, :i32, :u32, :i64, :u64, :f32, :f64, :bool, :ptr, :list] ++
           [:binary, :replace, :error, :read, :write, :normal, :dirty, :auto, :stdout, :stderr] ++
           [:memory, :global, :table, :zero, :trap, :x, :y, :continue, :return, :raise, :"", :é]
  @natives [:global_get, :global_set, :table_get, :table_set, :table_size, :table_grow] ++
             [:fuel, :add_fuel, :memory_grow, :grow, :fuel_get]

  def uniform(n), do: :rand.uniform(n)
  def chance(percent), do: :rand.uniform(100) <= percent
  def pick(list), do: Enum.at(list, :rand.uniform(length(list)) - 1)

  ## By type

  @doc "A term of a type, as `Code.Typespec` has it; any other term now and then."
  def of(type, context, depth \\ 0)

  def of(type, context, depth) do
    cond do
      depth == 0 and chance(12) -> any()
      depth > 0 and chance(3) -> any()
      depth > 5 -> leaf()
      true -> typed(type, context, depth)
    end
  end

  defp typed({:ann_type, _, [_name, type]}, c, d), do: typed(type, c, d)
  defp typed({:atom, _, atom}, _c, _d), do: atom
  defp typed({:integer, _, n}, _c, _d), do: n
  defp typed({:op, _, :-, {:integer, _, n}}, _c, _d), do: -n
  defp typed({:type, _, :union, types}, c, d), do: of(pick(types), c, d + 1)
  defp typed({:type, _, :integer, _}, _c, _d), do: integer()
  defp typed({:type, _, :neg_integer, _}, _c, _d), do: -abs(integer()) - 1
  defp typed({:type, _, :byte, _}, _c, _d), do: uniform(256) - 1
  defp typed({:type, _, :timeout, _}, _c, _d), do: timeout()
  defp typed({:type, _, :number, _}, _c, _d), do: number()
  defp typed({:type, _, :float, _}, _c, _d), do: float()
  defp typed({:type, _, :boolean, _}, _c, _d), do: chance(50)
  defp typed({:type, _, :atom, _}, _c, _d), do: pick(@atoms)
  defp typed({:type, _, :module, _}, _c, _d), do: Pool.get(:layout) || pick(@atoms)
  defp typed({:type, _, :pid, _}, _c, _d), do: pid()
  defp typed({:type, _, :reference, _}, _c, _d), do: reference()
  defp typed({:type, _, :binary, _}, _c, _d), do: binary()
  defp typed({:type, _, :bitstring, _}, _c, _d), do: bitstring()
  defp typed({:type, _, nil, _}, _c, _d), do: []
  defp typed({:type, _, :map, _}, c, d), do: map(c, d)

  defp typed({:type, _, :fun, [{:type, _, :product, args}, _]}, _c, _d),
    do: function(length(args))

  defp typed({:type, _, :fun, _}, _c, _d), do: function(uniform(4) - 1)
  defp typed({:type, _, :tuple, :any}, _c, _d), do: {any(), any()}
  defp typed({:type, _, :tuple, types}, c, d), do: List.to_tuple(each(types, c, d))
  defp typed({:type, _, :list, []}, c, d), do: list(nil, c, d)

  defp typed({:type, _, :range, [{:integer, _, low}, {:integer, _, high}]}, _c, _d),
    do: low + uniform(high - low + 1) - 1

  defp typed({:type, _, natural, _}, _c, _d) when natural in [:non_neg_integer, :pos_integer],
    do: natural()

  defp typed({:type, _, list, [type | _]}, c, d)
       when list in [:list, :nonempty_list, :maybe_improper_list] do
    case type do
      # A list of options.
      {:type, _, :tuple, [{:atom, _, _}, _]} -> options(c)
      {:type, _, :union, [{:type, _, :tuple, [{:atom, _, _}, _]} | _]} -> options(c)
      {:user_type, _, :option, _} -> options(c)
      {:remote_type, _, [_, {:atom, _, :option}, _]} -> options(c)
      {:user_type, _, :field, _} -> fields(d)
      type -> list(type, c, d)
    end
  end

  defp typed({:remote_type, _, [{:atom, _, module}, {:atom, _, name}, _args]}, c, d),
    do: named(module, name, c, d)

  defp typed({:user_type, _, name, _args}, c, d), do: named(c.module, name, c, d)
  defp typed(_other, _c, _d), do: any()

  defp each(types, c, d), do: for(type <- types, do: of(type, c, d + 1))

  defp list(type, c, d) do
    for _ <- 1..pick([0, 1, 1, 2, 2, 3, 5, 20])//1 do
      if type, do: of(type, c, d + 1), else: value()
    end
  end

  defp named(Beamr, :guest, _c, _d), do: guest()
  defp named(GenServer, :server, _c, _d), do: guest()
  defp named(Beamr, :funcref, _c, _d), do: Pool.get(:funcref) || reference()
  defp named(Beamr, :value, _c, _d), do: value()
  defp named(Beamr.IO, :value, _c, _d), do: value()
  defp named(Beamr.Instance, :t, _c, _d), do: instance()
  defp named(Beamr.Module, :t, _c, _d), do: Pool.get(:module)
  defp named(Beamr.View, :t, _c, _d), do: Pool.get(:view) || any()
  defp named(Beamr.Allocator, :t, _c, _d), do: Pool.get(:allocator) || any()
  defp named(Beamr.Allocator.Stack, :t, _c, _d), do: Pool.get(:allocator) || any()
  defp named(Beamr.Struct, name, _c, _d) when name in [:t, :layout], do: layout()
  defp named(Beamr.Struct, :type, _c, d), do: field_type(d)
  defp named(Beamr.Struct, :path, _c, _d), do: pick([:x, :y, [:x], [:points, 1, :x], [], [:s, 9]])
  defp named(Beamr.Native, :instance_ref, _c, _d), do: instance_ref()
  defp named(Beamr.Native, :module_ref, _c, _d), do: Pool.get(:module).ref
  defp named(Beamr.Native, :wasi_ref, _c, _d), do: Pool.get(:wasi) || reference()

  defp named(Beamr.Native, :memory_name, _c, _d),
    do: pick([nil, nil, nil, "memory", "second", ""])

  defp named(Beamr.Native, :given, _c, _d), do: list(nil, %{}, 1)
  defp named(String, :t, _c, _d), do: string()
  defp named(:beamr, :options, c, _d), do: erlang_options(c)
  defp named(Path, :t, _c, _d), do: path()
  defp named(:file, _name, _c, _d), do: path()
  defp named(_module, :keyword, c, _d), do: options(c)
  defp named(_module, name, _c, _d) when name in [:iodata, :iolist, :chardata], do: iodata()

  defp named(module, name, c, d) do
    case Hostile.Api.type(module, name) do
      nil -> builtin(name, c, d)
      type -> of(type, %{c | module: module}, d + 1)
    end
  end

  defp builtin(:proplist, c, _d), do: options(c)
  defp builtin(_name, _c, _d), do: any()

  ## What Beamr knows

  def guest do
    case uniform(20) do
      n when n <= 11 -> instance()
      n when n <= 16 -> Pool.get(:server)
      17 -> pick([:hostile_a, :hostile_b, {:global, :hostile_c}, {:hostile_a, node()}])
      18 -> pick([{:hostile_a, :nowhere@nowhere}, {:via, Registry, {Hostile.Names, :d}}, :nobody])
      19 -> pid()
      20 -> forged()
    end
  end

  defp instance, do: Pool.get(:instance)

  # A struct that nobody made.
  defp forged do
    %Beamr.Instance{} = instance = instance()
    Process.put(:hostile_forged, true)

    pick([
      %{instance | ref: reference()},
      %{instance | module: Pool.get(:module)},
      %{instance | imports: {}},
      %{instance | ref: any()}
    ])
  end

  defp instance_ref do
    case uniform(20) do
      1 -> reference()
      n when n < 5 -> instance().ref
      _ -> Pool.get(:raw)
    end
  end

  defp layout, do: if(chance(80), do: Pool.get(:layout), else: Beamr.Struct.new([x: :i32], []))

  defp fields(d) do
    for name <- Enum.take_random([:x, :y, :z, :s, :points], uniform(4)), do: {name, field_type(d)}
  end

  defp field_type(d) when d > 4, do: :i32

  defp field_type(d) do
    case uniform(12) do
      n when n < 6 -> pick([:i8, :u16, :i32, :u64, :f32, :f64, :bool, :ptr])
      6 -> {:ptr, field_type(d + 1)}
      7 -> {:enum, [on: 1, off: 0]}
      8 -> {:string, natural()}
      9 -> {:bytes, natural()}
      10 -> {:array, field_type(d + 1), natural()}
      11 -> {pick([:struct, :union]), fields(d + 1)}
      12 -> any()
    end
  end

  @doc "A list of options that the function is known to take, and others now and then."
  def options(context) do
    known = Map.get(context, :options, [])

    options =
      for name <- Enum.take_random(known, uniform(4) - 1),
          name not in [:cache],
          do: {name, option(name)}

    cond do
      chance(3) -> [{pick(@atoms), any()} | options]
      chance(3) -> options ++ [any()]
      true -> options ++ required(context)
    end
  end

  defp required(%{options: options}) do
    if :module in options, do: [module: Pool.get(:module), stubs: :zero], else: []
  end

  defp required(_context), do: []

  defp erlang_options(context) do
    options = options(context)
    if chance(30) and Enum.all?(options, &match?({_, _}, &1)), do: Map.new(options), else: options
  end

  defp option(name) do
    if chance(8), do: any(), else: known_option(name)
  end

  defp known_option(:timeout), do: timeout()
  defp known_option(:scheduler), do: pick([:auto, :normal, :dirty])
  defp known_option(:imports), do: imports()
  defp known_option(:hosts), do: pick([[], Beamr.Host.Clean.hosts([:math, :strings])])
  defp known_option(:stubs), do: pick([nil, :zero, :zero, :trap])
  defp known_option(:memory), do: pick([nil, nil, "memory", "second", "g", string()])
  defp known_option(:as), do: pick([:list, :binary])
  defp known_option(:invalid), do: pick([:replace, :error])
  defp known_option(:on_trap), do: pick([:stop, :reset, :keep])
  defp known_option(:module), do: Pool.get(:module)
  defp known_option(:wasi), do: wasi()
  defp known_option(:name), do: pick([:hostile_a, :hostile_b, {:global, :hostile_c}])
  defp known_option(:grant), do: pick([[:math], [:console], [files: [root: "files"]], []])
  defp known_option(:init), do: pick(["f", "nothing", function(1)])
  defp known_option(:port), do: 0
  defp known_option(:ip), do: {127, 0, 0, 1}
  defp known_option(:owner), do: pid()
  defp known_option(:allocator), do: Pool.get(:allocator)
  defp known_option(:instance), do: [stubs: :zero]
  defp known_option(:args), do: list({:type, 0, :binary, []}, %{module: nil}, 1)
  defp known_option(:env), do: %{string() => string()}
  defp known_option(:dirs), do: pick([[], [{"files", "data", :read}], [{"files", ".", :write}]])
  defp known_option(:stdin), do: pick([nil, iodata(), function(0)])
  defp known_option(out) when out in [:stdout, :stderr], do: output()
  defp known_option(:clock), do: pick([nil, natural(), {natural(), natural()}])
  defp known_option(:align), do: pick([1, 2, 4, 8, 16, 64, 65_536, natural()])
  defp known_option(:max_memory), do: pick([0, 65_536, 1_000_000, natural()])

  @flags [:fuel, :deterministic, :compact, :unsigned, :wrap, :grow, :follow]
  defp known_option(flag) when flag in @flags, do: pick([true, false, natural()])

  defp known_option(_name), do: pick([natural(), true, false, nil, string(), any()])

  defp output, do: pick([:default, :buffer, {:buffer, natural()}, nil, function(1), pid()])

  defp wasi do
    pick([nil, true, [], [args: ["tool"], stdout: :buffer], [stdin: iodata(), random: natural()]]) ||
      for name <- Enum.take_random([:args, :env, :dirs, :stdin, :stdout, :stderr, :clock], 2),
          do: {name, option(name)}
  end

  @doc "Imports for the pool's guests; what they do is the callbacks' own affair."
  def imports do
    env = %{
      "cb" => &Hostile.Calls.imported/2,
      "ext" => &Hostile.Calls.imported/2,
      "many" => &Hostile.Calls.imported/3,
      "wait" => &Hostile.Calls.wait/1
    }

    case uniform(12) do
      1 -> %{"env" => Map.put(env, "cb", any())}
      2 -> %{"env" => Map.put(env, "memory", {:memory, natural(), natural()})}
      3 -> any()
      _ -> %{"env" => env}
    end
  end

  @doc "The tuple that wasi_new takes."
  def wasi_tuple do
    tuple = {["a"], [{"k", "v"}], [], "input", :text, 1_024, nil, 7, false}

    if chance(50) do
      tuple
    else
      put_elem(
        tuple,
        uniform(9) - 1,
        pick([any(), natural(), {natural(), natural()}, nil, :binary])
      )
    end
  end

  def native_options do
    options = {100, 1_000, 16_777_216, 10_000, nil, nil}

    if chance(60) do
      options
    else
      value = pick([any(), natural(), {Pool.get(:wasi), [0, natural()]}, -1])
      put_elem(options, uniform(6) - 1, value)
    end
  end

  def verb, do: if(chance(90), do: pick(@natives), else: pick(@atoms))

  ## Kinds of terms

  def timeout, do: pick([0, 1, 1, 2, 5, 10, 20, 50, :infinity])

  def integer do
    case uniform(10) do
      n when n <= 5 -> uniform(64) - 8
      n when n <= 7 -> pick(@places) + uniform(17) - 9
      n when n <= 9 -> pick(@edges)
      10 -> uniform(2 ** 64) - 2 ** 63
    end
  end

  def natural do
    case uniform(10) do
      n when n <= 5 -> uniform(256)
      n when n <= 8 -> pick(@places) + uniform(9) - 1
      _ -> abs(pick(@edges))
    end
  end

  @doc "As `value/0`, where there is no pool."
  def value_without_pool, do: pick([integer(), float(), :nan, nil, "term", [1], bytes(16)])

  def float do
    pick([0.0, -0.0, 0.5, -1.5, 1.0e308, -1.7976931348623157e308, 3.5e38, 5.0e-324, 1.0e10])
  end

  def number, do: if(chance(60), do: integer(), else: float())

  @doc "A value as guests take it, of whatever type."
  def value do
    case uniform(10) do
      n when n <= 5 -> integer()
      6 -> float()
      7 -> pick([:nan, :infinity, :neg_infinity, nil])
      8 -> :crypto.hash(:md5, <<uniform(9)>>)
      9 -> Pool.get(:funcref)
      10 -> any()
    end
  end

  def string do
    case uniform(8) do
      n when n <= 5 -> pick(@names)
      6 -> pick(["", "ünïcödé ☃", "a\0b", "\xFF\xFE", "\xC3", String.duplicate("x", 300)])
      7 -> binary()
      8 -> Pool.get(:wat)
    end
  end

  # No random path leads out of the folder that the round runs in.
  defp path,
    do: pick(["files", "nothing", "files.wasm", "", "x\0y", ~c"files", "\xFF", ["fi", ~c"les"]])

  def binary do
    case uniform(12) do
      n when n <= 4 -> bytes(uniform(16) - 1)
      n when n <= 6 -> bytes(uniform(300))
      7 -> :binary.part(bytes(200), 3, uniform(190))
      8 -> :binary.copy("ab", pick([100, 32_768, 65_537]))
      9 -> if(chance(10), do: :binary.copy("x", 2_000_000), else: "")
      10 -> Pool.get(:wasm)
      11 -> mutated(Pool.get(pick([:wasm, :wat, :artifact])))
      12 -> Pool.get(:artifact)
    end
  end

  # Without slashes and dots: such a string may become a path.
  def bytes(n), do: for(_ <- 1..n//1, into: <<>>, do: <<byte()>>)

  defp byte do
    case uniform(256) - 1 do
      n when n in [?/, ?.] -> 0
      n -> n
    end
  end

  @doc "The same bytes but for a few."
  def mutated(<<>>), do: <<0>>

  def mutated(bytes) do
    Enum.reduce(1..uniform(4), bytes, fn _, bytes ->
      at = uniform(byte_size(bytes)) - 1
      {before, <<byte, rest::binary>>} = :erlang.split_binary(bytes, at)

      case uniform(8) do
        n when n <= 3 -> <<before::binary, byte(), rest::binary>>
        4 -> <<before::binary, Bitwise.bxor(byte, Bitwise.bsl(1, uniform(8) - 1)), rest::binary>>
        5 -> <<before::binary, byte, byte, rest::binary>>
        6 -> <<before::binary, 0, rest::binary>>
        7 -> <<before::binary, 0x7F, rest::binary>>
        8 -> if(chance(20), do: before <> <<0>>, else: <<before::binary, 0xFF, rest::binary>>)
      end
    end)
  end

  def bitstring, do: pick([<<1::3>>, <<5::7>>, <<bytes(9)::binary, 1::1>>, unaligned(), bytes(3)])

  # A binary that begins in the middle of a byte.
  defp unaligned do
    <<_::3, rest::binary-size(8), _::bitstring>> = <<0::3, bytes(8)::binary, 0::5>>
    rest
  end

  def iodata do
    case uniform(10) do
      n when n <= 4 -> binary()
      5 -> [binary(), [uniform(256) - 1 | binary()], ~c"text"]
      6 -> deep(pick([10, 1_000, 30_000]), binary())
      7 -> Enum.map(1..pick([10, 1_000, 20_000]), fn n -> rem(n, 256) end)
      8 -> [bytes(70), unaligned(), bytes(200) | unaligned()]
      9 -> [1, 2, 256, -1, :a]
      10 -> List.duplicate(bytes(70), pick([10, 5_000]))
    end
  end

  # Half of them nested in the first element, half in the last.
  defp deep(n, term),
    do: Enum.reduce(1..n, term, fn n, t -> if(rem(n, 2) == 0, do: [t], else: [n | [t]]) end)

  def pid do
    case uniform(8) do
      n when n <= 3 -> Pool.get(:server)
      n when n <= 5 -> Pool.get(:victim)
      6 -> self()
      7 -> dead()
      8 -> foreign()
    end
  end

  defp dead do
    {pid, monitor} = spawn_monitor(fn -> :ok end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, _reason} -> pid
    end
  end

  # A process of a node that is not there.
  defp foreign do
    :erlang.binary_to_term(<<131, 88, 119, 5, "a@b_c", 90::32, 0::32, 1::32>>)
  end

  def reference do
    case uniform(9) do
      1 -> make_ref()
      2 -> Pool.get(:module).ref
      3 -> instance().ref
      4 -> Pool.get(:wasi)
      5 -> Pool.get(:funcref)
      6 -> :counters.new(1, [])
      7 -> :ets.whereis(Hostile.Pool)
      8 -> Pool.get(:raw)
      9 -> :erlang.binary_to_term(<<131, 90, 1::16, 119, 5, "a@b_c", 1::32, 7::32>>)
    end
  end

  def function(arity) when arity in 0..5 do
    case arity do
      0 -> fn -> Hostile.Calls.callback([]) end
      1 -> fn a -> Hostile.Calls.callback([a]) end
      2 -> fn a, b -> Hostile.Calls.callback([a, b]) end
      3 -> fn a, b, c -> Hostile.Calls.callback([a, b, c]) end
      4 -> fn a, b, c, d -> Hostile.Calls.callback([a, b, c, d]) end
      _ -> fn a, b, c, d, e -> Hostile.Calls.callback([a, b, c, d, e]) end
    end
  end

  def function(_arity), do: function(1)

  defp map(c, d) do
    case uniform(6) do
      1 -> %{}
      2 -> Map.new(1..50, fn n -> {n, any()} end)
      3 -> %{x: number(), y: number(), s: string(), z: leaf()}
      4 -> %{x: number(), y: number()}
      5 -> %{list(nil, c, d) => any(), string() => leaf()}
      6 -> imports()
    end
  end

  def leaf do
    pick([nil, 0, integer(), pick(@atoms), "", string()])
  end

  @doc "Any term at all."
  def any do
    case uniform(24) do
      n when n <= 4 -> integer()
      5 -> float()
      6 -> pick(@atoms)
      7 -> string()
      8 -> binary()
      9 -> bitstring()
      10 -> iodata()
      11 -> [integer() | pick([integer(), :improper, "tail"])]
      12 -> {any(), leaf()}
      13 -> %{leaf() => leaf()}
      14 -> pid()
      15 -> reference()
      16 -> function(uniform(5) - 1)
      17 -> Pool.get(pick([:instance, :server, :module, :view, :allocator, :layout]))
      18 -> forged()
      19 -> Port.list() |> hd()
      20 -> []
      21 -> {}
      22 -> [leaf(), leaf()]
      23 -> if(chance(10), do: Enum.to_list(1..50_000), else: [leaf()])
      24 -> if(chance(10), do: deep(50_000, :bottom), else: %Beamr.Trap{reason: leaf()})
    end
  end
end
