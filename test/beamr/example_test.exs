defmodule Beamr.ExampleTest do
  # An application of guests, as the README shows it: requests go by their key to one of a
  # number of guests, each with a process of its own.
  use Beamr.Case, async: false

  @moduletag capture_log: true

  defmodule Tally do
    @moduledoc "Counts requests by key in WebAssembly guests, one for each scheduler."

    use Supervisor

    @wat """
    (module $tally
      (import "host" "log" (func $log (param i32)))
      (memory (export "memory") 1)

      ;; Slot n of 256 is the i32 at 4n. Answers the count of the slot with this request.
      (func (export "hit") (param $slot i32) (result i32)
        (local $address i32)
        (local.set $address (i32.shl (local.get $slot) (i32.const 2)))
        (if (i32.ge_u (local.get $slot) (i32.const 256)) (then unreachable))
        (i32.store (local.get $address)
          (i32.add (i32.load (local.get $address)) (i32.const 1)))
        (call $log (local.get $slot))
        (i32.load (local.get $address)))

      ;; What a bad request may do.
      (func (export "spin") (loop (br 0))))
    """

    def start_link(opts), do: Supervisor.start_link(__MODULE__, opts, name: __MODULE__)

    @impl true
    def init(opts) do
      guest = {
        Beamr.Server,
        # Compiled once, whatever the number of guests and of their restarts.
        module: Beamr.compile!(@wat),
        imports: %{"host" => %{"log" => fn _wasm, slot -> opts[:log].(self(), slot) end}},
        max_memory: 65_536,
        timeout: 1_000,
        on_trap: :stop
      }

      children = [
        {PartitionSupervisor, name: Tally.Guests, child_spec: guest, partitions: 4}
      ]

      # Guests that trap again and again are no reason to take the application down.
      Supervisor.init(children, strategy: :one_for_one, max_restarts: 100)
    end

    @doc "Counts a request; answers how many there have been for its key."
    def hit(key) do
      with {:ok, [count]} <- Beamr.call(guest(key), "hit", [slot(key)], timeout: 500) do
        {:ok, count}
      end
    end

    @doc "How many requests there have been: read from memory, while the guest does what it does."
    def count(key) do
      <<count::little-32>> = Beamr.IO.read!(guest(key), 4 * slot(key), 4)
      count
    end

    def guest(key), do: {:via, PartitionSupervisor, {Tally.Guests, :erlang.phash2(key)}}

    defp slot(key), do: :erlang.phash2(key, 256)
  end

  setup do
    test = self()
    start_supervised!({Tally, log: fn guest, slot -> send(test, {:log, guest, slot}) end})
    :ok
  end

  defp pid(key), do: GenServer.whereis(Tally.guest(key))

  # Of ten keys, some that differ in their guests.
  defp two_guests do
    [one | keys] = for n <- 1..50, do: "user #{n}"
    {one, Enum.find(keys, &(pid(&1) != pid(one)))}
  end

  test "requests are served by key" do
    assert Tally.hit("ada") == {:ok, 1}
    assert Tally.hit("ada") == {:ok, 2}
    assert Tally.count("ada") == 2
  end

  test "a key's requests always go to the same guest, where its imports run" do
    guest = pid("ada")
    for _ <- 1..5, do: Tally.hit("ada")
    for _ <- 1..5, do: assert_received({:log, ^guest, _slot})
  end

  test "many clients are served at the same time, and none is lost" do
    keys = for n <- 1..8, do: "user #{n}"

    1..400
    |> Task.async_stream(fn n -> {:ok, _} = Tally.hit(Enum.at(keys, rem(n, 8))) end,
      max_concurrency: 16
    )
    |> Stream.run()

    # Keys may share a slot; every key then sees the requests of both.
    counts = keys |> Enum.uniq_by(&{pid(&1), :erlang.phash2(&1, 256)}) |> Enum.map(&Tally.count/1)
    assert Enum.sum(counts) == 400
  end

  test "a guest that traps is started afresh, and the others do not notice" do
    {one, other} = two_guests()
    {:ok, 1} = Tally.hit(one)
    {:ok, 1} = Tally.hit(other)
    old = pid(one)

    assert {:error, %Beamr.Trap{reason: :unreachable}} =
             Beamr.call(Tally.guest(one), "hit", [256])

    eventually(fn -> is_pid(pid(one)) and pid(one) != old end)
    eventually(fn -> match?([_], Registry.lookup(Beamr.Registry, pid(one))) end)
    assert Tally.hit(one) == {:ok, 1}
    assert Tally.hit(other) == {:ok, 2}
  end

  test "a guest that spins is ended when its time is up, and the others do not wait" do
    {one, other} = two_guests()
    test = self()

    spawn_link(fn ->
      send(test, :spinning)
      send(test, {:spun, Beamr.call(Tally.guest(one), "spin", [], timeout: 300)})
    end)

    assert_receive :spinning
    assert Tally.hit(other) == {:ok, 1}
    assert Tally.count(one) == 0
    assert_receive {:spun, {:error, %Beamr.CallError{reason: :timeout}}}, 5_000
    assert Tally.hit(one) == {:ok, 1}
  end

  test "it stops with its supervisor" do
    guests = for n <- 1..50, uniq: true, do: pid("user #{n}")
    stop_supervised!(Tally)
    refute Enum.any?(guests, &Process.alive?/1)
    assert {:noproc, _} = catch_exit(Tally.hit("ada"))
  end
end
